import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import BackboneConfig, LanguageModel
from jaxattn.models.backbone import POSITIONS

ATTENTION = [
    "softmax",
    "softmax+gate=running",
    "softmax+gate=prefix",
    "softmax+gate=none",
    "lags:2",
    "lags:2+gate",
]


def make(mechanism="softmax", positions="learned", **kwargs):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "max_length": 16}
    config = BackboneConfig(mechanism=mechanism, positions=positions, **(sizes | kwargs))
    return LanguageModel(11, config, rngs=nnx.Rngs(0))


whole_pass = nnx.jit(lambda model, tokens, mask=None: model(tokens, token_mask=mask))
one_step = nnx.jit(lambda model, state, tokens: model.step(state, tokens))


def tokens(batch=2, length=16):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, 11)


@pytest.mark.parametrize(
    ("mechanism", "positions"),
    [*zip(ATTENTION, POSITIONS, strict=True), ("softmax+gate=running", "rotary")],
)
@pytest.mark.few(2)
def test_decoding_equals_the_whole_and_nothing_leaks(mechanism, positions):
    model, x = make(mechanism, positions, num_layers=2), tokens()
    # Without absolute positions two equal tokens at the start have energies that differ by rounding, if at all. A
    # running gate divides by that spread, down to 1e-6: there two right computations are 1e-4 apart.
    x = x.at[:, 1].set((x[:, 0] + 1) % 11)
    whole = whole_pass(model, x)
    state, first = one_step(model, model.init_state(2), x[:, :9])
    logits = [first]
    for i in range(9, 16):
        state, out = one_step(model, state, x[:, i : i + 1])
        logits.append(out)
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), whole, atol=2e-5)
    # every prefix sees what the whole window showed it
    np.testing.assert_allclose(whole_pass(model, x[:, :7]), whole[:, :7], atol=2e-5)


def test_the_leaking_gate_shows_on_prefixes():
    model = make("softmax+gate=sequence", allow_leak=True)
    x = tokens()
    assert jnp.abs(whole_pass(model, x[:, :7]) - whole_pass(model, x)[:, :7]).max() > 1e-3


def test_decoding_past_the_end_is_nan_not_wrong():
    model, x = make(), tokens(1, 16)
    state, _ = one_step(model, model.init_state(1), x)
    assert jnp.isnan(one_step(model, state, x[:, :1])[1]).all()


def test_right_padding_is_invisible():
    model, x = make("softmax+gate=running"), tokens()
    mask = jnp.broadcast_to(jnp.arange(16) < 10, (2, 16))
    np.testing.assert_allclose(whole_pass(model, x, mask)[:, :10], whole_pass(model, x[:, :10]), atol=2e-5)


def test_bad_model_arguments():
    with pytest.raises(ValueError, match="positions must be one of"):
        make(positions="fourier")
    with pytest.raises(ValueError, match="at most max_length = 16"):
        make()(tokens(1, 17))
    with pytest.raises(ValueError, match="max_length must be between 1 and 16; got 17"):
        make().init_state(1, 17)
    with pytest.raises(ValueError, match="positions is for blocks with a rotary position embedding"):
        make(positions="none")(tokens(), positions=jnp.arange(16))
    for name in ("num_layers", "hidden_size", "max_length"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got -1"):
            make(**{name: -1})
    with pytest.raises(ValueError, match="allow_leak"):
        make("softmax+gate=sequence")(tokens())


def test_bf16_model_gives_float32_logits():
    x = tokens()
    low = whole_pass(make(dtype=jnp.bfloat16), x)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, whole_pass(make(), x), atol=0.02)
