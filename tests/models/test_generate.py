"""Generation: ragged batches, end tokens, sampling options, streams, and how often it is compiled."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxattn
from jaxattn.models import BackboneConfig, LanguageModel, generate, sample_token, stream
from jaxattn.models.generate import _generate, _request
from jaxattn.models.sampling import check_sampling
from jaxattn.nn import SHARDING_RULES

VOCABULARY = 11
KEYS = jax.random.split(jax.random.key(3), 3)
# One row a family and gate.
MECHANISMS = [
    "softmax",
    pytest.param("softmax+gate=prefix", marks=pytest.mark.slow),
    "lags:2+gate",
    "features:oprf-orf:8",
    pytest.param("linear+forget", marks=pytest.mark.slow),
    "tree:3x2+alibi",
    pytest.param("softmax+outgate", marks=pytest.mark.slow),
]


def make(mechanism="softmax", positions="rotary", max_length=64):
    config = BackboneConfig(
        num_layers=1,
        num_heads=2,
        hidden_size=16,
        max_length=max_length,
        mechanism=mechanism,
        positions=positions,
    )
    return LanguageModel(VOCABULARY, config, rngs=nnx.Rngs(0))


def prompts(batch=3, length=7):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, VOCABULARY)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax+gate", "lags:2"])
def test_caches_cut_among_devices(mechanism):
    """The same texts, also as a stream; no device has a cache that is whole."""
    model, x, lengths = make(mechanism), prompts(), jnp.array([2, 7, 5])
    options = {"prompt_lengths": lengths, "key": KEYS, "temperature": jnp.array([0.0, 1.0, 0.7])}
    expected = generate(model, x, 20, **options)
    mesh = jax.make_mesh((2,), ("sequence",), (AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), nnx.logical_axis_rules(SHARDING_RULES):
        found = generate(model, x, 20, **options)
        streamed = jnp.stack(list(stream(model, x, 20, **options)), axis=1)
        request = _request(model, x, 20, KEYS, lengths, None, 1.0, None, None)
        program = _generate.lower(*request, 20).compile().as_text()
    chex.assert_trees_all_equal(found, expected)
    for b, length in enumerate(lengths.tolist()):
        np.testing.assert_array_equal(streamed[b], expected.tokens[b, length : length + 20])
    assert "[3,16,2," in program and "[3,32,2," not in program


def test_programs_are_for_the_rules_in_force():
    """Which may be lists, as configuration files give them."""
    model = make()

    def static():
        return _request(model, prompts(), 3, KEYS, None, None, 1.0, None, None)[0]

    with nnx.logical_axis_rules([["batch", ["data", "fsdp"]]]):
        cut = static()
    assert len({cut, static(), static()}) == 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.few(2)
def test_a_ragged_batch_is_each_prompt_alone(mechanism):
    """Greedily and with random draws, since a sequence draws with its own key."""
    model, x, lengths = make(mechanism), prompts(), jnp.array([2, 7, 5])
    temperature = jnp.array([0.0, 1.0, 0.7])
    together = generate(model, x, 6, key=KEYS, prompt_lengths=lengths, temperature=temperature)
    assert together.lengths.tolist() == [8, 13, 11] and together.tokens.shape == (3, 13)
    for b, length in enumerate(lengths.tolist()):
        alone = generate(
            model, x[b : b + 1, :length], 6, key=KEYS[b : b + 1], temperature=temperature[b : b + 1]
        )
        np.testing.assert_array_equal(together.tokens[b, : length + 6], alone.tokens[0])
        np.testing.assert_array_equal(alone.tokens[0, :length], x[b, :length])
        assert (together.tokens[b, length + 6 :] == 0).all()


def test_options_that_are_constants_of_a_compiled_function_are_checked():
    good, bad = jnp.float32(0.5), jnp.float32(0)
    jax.eval_shape(lambda: check_sampling(good, None, good, 1))
    with pytest.raises(ValueError, match="top_p must be above 0"):
        jax.eval_shape(lambda: check_sampling(good, None, bad, 1))


def test_greedy_generation_is_the_argmax_of_the_whole_pass():
    model, x = make("softmax+gate=running", "learned"), prompts(1, 4)
    out = generate(model, x, 6, key=jax.random.key(0), temperature=0.0).tokens
    assert (out[0, 4:] == nnx.jit(lambda model, x: model(x))(model, out)[0, 3:-1].argmax(axis=-1)).all()


def test_padding_anywhere_is_as_if_it_were_not_there():
    model, x = make("lags:2+gate", "learned"), prompts(2, 8)
    step = nnx.jit(lambda model, state, tokens, mask=None: model.step(state, tokens, token_mask=mask))
    prefill = nnx.jit(lambda model, tokens, mask: model.prefill(tokens, token_mask=mask, max_length=10))
    for keep in ([3, 4, 5, 6, 7], [0, 1, 2, 3, 4], [0, 2, 3, 6, 7]):  # padded left, right and between
        mask = jnp.array([[i in keep for i in range(8)], [True] * 8])
        state, logits = step(model, model.init_state(2, 10), x, mask)
        alone, expected = step(model, model.init_state(1, 10), x[:1, jnp.array(keep)])
        np.testing.assert_allclose(logits[0, jnp.array(keep)], expected[0], atol=1e-5)
        _, then = step(model, state, x[:, :1])
        _, then_alone = step(model, alone, x[:1, :1])
        np.testing.assert_allclose(then[0], then_alone[0], atol=1e-5)
        np.testing.assert_allclose(prefill(model, x, mask)[1][0], expected[0, -1], atol=1e-5)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.few(2)
def test_continuous_refill(mechanism):
    """A sequence gives way to a new prompt while the other goes on; both are what they are alone."""
    model, x = make(mechanism), prompts(3, 7)
    step = nnx.jit(lambda model, state, tokens: model.step(state, tokens))
    prefill = nnx.jit(lambda model, tokens: model.prefill(tokens, max_length=16))
    whole = nnx.jit(lambda model, x: model(x))(model, x)
    state, _ = prefill(model, x[:2, :3])
    state, _ = step(model, state, x[:2, 3:4])
    new, logits = prefill(model, x[2:, :3])
    np.testing.assert_allclose(logits[0], whole[2, 2], atol=1e-5)
    state = jaxattn.replace_rows(state, jnp.array([0]), new)
    for t in range(3):
        state, logits = step(model, state, jnp.stack([x[2, 3 + t], x[1, 4 + t]])[:, None])
        np.testing.assert_allclose(logits[:, 0], jnp.stack([whole[2, 3 + t], whole[1, 4 + t]]), atol=2e-5)


def test_sequences_end_with_their_end_token():
    model, x, lengths = make(), prompts(), jnp.array([2, 7, 5])
    options = {"key": jax.random.key(0), "prompt_lengths": lengths, "temperature": 2.0}
    free = generate(model, x, 20, **options)
    end = int(free.tokens[1, 10])
    ended = generate(model, x, 20, end_token=end, **options)
    for b, length in enumerate(lengths.tolist()):
        new = free.tokens[b, length : length + 20].tolist()
        new = new[: new.index(end) + 1] if end in new else new
        assert ended.lengths[b] == length + len(new)
        assert ended.tokens[b, length : length + len(new)].tolist() == new
        assert (ended.tokens[b, length + len(new) :] == end).all()
    streamed = np.stack(list(stream(model, x, 20, end_token=end, **options)), axis=1)
    assert streamed.shape[1] == max(ended.lengths - lengths)
    for b, length in enumerate(lengths.tolist()):
        np.testing.assert_array_equal(streamed[b], ended.tokens[b, length : length + streamed.shape[1]])


def test_one_program_for_a_bucket(monkeypatch):
    """Prompts, numbers of tokens, temperatures and end tokens of all kinds: prompt and step are traced once each."""
    step, prefill = (
        chex.assert_max_traces(function, n=1) for function in (LanguageModel.step, LanguageModel.prefill)
    )
    monkeypatch.setattr(LanguageModel, "step", lambda *args, **options: step(*args, **options))
    monkeypatch.setattr(LanguageModel, "prefill", lambda *args, **options: prefill(*args, **options))
    model = make(max_length=48)
    for length, count, temperature, top_p, end in [
        (17, 15, 0.0, 0.9, 3),
        (20, 3, 1.0, 0.5, 4),
        (25, 7, 0.3, 1.0, 5),
    ]:
        generate(
            model,
            prompts(2, length),
            count,
            key=jax.random.key(length),
            prompt_lengths=jnp.array([length - 8, length]),
            temperature=temperature,
            top_p=top_p,
            end_token=end,
        )


def test_keys_of_the_older_style_draw_the_same():
    model, x = make(), prompts()
    for typed in (jax.random.key(5), KEYS):
        raw = jax.random.key_data(typed)
        same = [generate(model, x, 4, key=key).tokens for key in (typed, raw)]
        np.testing.assert_array_equal(*same)
        logits = jax.random.normal(jax.random.key(0), (3, VOCABULARY))
        np.testing.assert_array_equal(sample_token(logits, typed), sample_token(logits, raw))


def test_numpy_numbers_and_lists_are_prompts_and_counts(no_typecheck):
    model, key = make(), jax.random.key(0)
    expected = generate(model, jnp.array([[1, 2]]), 3, key=key)
    for prompt in ([[1, 2]], np.array([[1, 2]])):
        np.testing.assert_array_equal(generate(model, prompt, np.int64(3), key=key).tokens, expected.tokens)


def test_sampling_draws_from_the_likeliest():
    logits = jnp.log(jnp.array([[0.1, 0.15, 0.3, 0.45]]))
    draw = jax.jit(sample_token, static_argnames="top_k")

    def drawn(**options):
        return {int(draw(logits, jax.random.key(i), 1.0, **options)[0]) for i in range(60)}

    assert drawn(top_k=2) == {2, 3}
    assert drawn(top_p=0.4) == {3} and drawn(top_p=0.5) == {2, 3} and drawn(top_p=0.8) == {1, 2, 3}
    assert drawn(top_k=3, top_p=0.8) == {2, 3}  # (0.3 + 0.45) / 0.9 of the likeliest three
    assert drawn() == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1"),
        ({"num_tokens": 63}, "num_tokens must be at most 60"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": jnp.array([1.0, -1.0])}, "temperature must be at least 0"),
        (
            {"temperature": jnp.ones(3)},
            r"temperature must be one number, or one a row, \(B,\) = \(2,\)",
        ),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"num_tokens": 2.0}, "num_tokens must be at least 1, as an integer"),
        ({"end_token": VOCABULARY}, "end_token must be None or a token id below 11; got 11"),
        ({"end_token": 1.5}, "end_token must be None or a token id below 11; got 1.5"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 2.5}, "top_k must be at least 1, as an integer"),
        ({"top_p": jnp.array([0.5, 0.5])}, r"top_p must have shape \(\)"),
        ({"key": 0}, "key must be a key of jax.random, or one a row"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"prompt_lengths": jnp.array([0, 4])}, r"prompt_lengths must lie in 1\.\.4; got \[0, 4\]"),
        ({"prompt_lengths": jnp.array([4])}, r"prompt_lengths must have shape \(B,\) = \(2,\)"),
        ({"prompt": jnp.array([[1, VOCABULARY]])}, "prompt must hold token ids from 0 to 10; got 1 to 11"),
        ({"prompt": jnp.array([[1, -1]])}, "prompt must hold token ids from 0 to 10; got -1 to 1"),
        ({"key": KEYS}, r"key must have shape \(B,\) = \(2,\)"),
    ],
)
@pytest.mark.parametrize("call", [generate, stream])
def test_bad_arguments(no_typecheck, call, options, message):
    options = {"prompt": prompts(2, 4), "num_tokens": 2, "key": jax.random.key(0), **options}
    with pytest.raises(ValueError, match=message):
        call(make(), **options)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (jnp.zeros((2, 5), int), jnp.ones((2, 4), bool), r"token_mask must have shape \(B, T\) = \(2, 5\)"),
        (jnp.zeros((2, 5), int), jnp.ones((2, 6), bool), r"token_mask must have shape \(B, T\) = \(2, 5\)"),
        (jnp.zeros((2, 5), int), jnp.ones((2, 5), int), "token_mask must be bool"),
        (jnp.zeros((2, 5)), None, "tokens must be integer token ids"),
        (jnp.zeros(5, int), None, r"tokens must have shape \(B, T\)"),
    ],
)
def test_tokens_and_masks_that_do_not_fit(no_typecheck, tokens, mask, message):
    model = make()
    for call in (
        model,
        model.prefill,
        lambda *args, **kwargs: model.step(model.init_state(2), *args, **kwargs),
    ):
        with pytest.raises(ValueError, match=message):
            call(tokens, token_mask=mask)


def test_a_step_needs_a_row_for_each_sequence_of_its_state(no_typecheck):
    model = make()
    with pytest.raises(ValueError, match="tokens must have a row for each of the state's 2 sequences"):
        model.step(model.init_state(2), jnp.zeros((1, 5), int))
