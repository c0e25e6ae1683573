"""Scanned stacks of blocks: the same numbers as unrolled ones, in calls, gradients, statistics and decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxattn.models import BackboneConfig, LanguageModel
from jaxattn.nn import (
    SHARDING_RULES,
    Encoder,
    RandomFeatures,
    decays,
    inject,
    replace_attention,
    scan_layers,
    unroll_layers,
)
from jaxattn.tree import Tree

X = jax.random.normal(jax.random.key(0), (1, 6, 8))
TOKENS = jnp.arange(24).reshape(2, 12) % 11


def language_model(mechanism="softmax", **options):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_size": 8, "max_length": 16, "mlp_ratio": 2.0}
    config = BackboneConfig(mechanism=mechanism, scan_layers=True, **sizes, **options)
    return LanguageModel(11, config, rngs=nnx.Rngs(0))


def loss_and_gradient(model):
    @nnx.jit
    def run(model):
        return nnx.value_and_grad(lambda model: jnp.sin(model(TOKENS)).sum())(model)

    return run(model)


def close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "mechanism",
    [
        "softmax+gate=running",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("features:oprf-orf:16", "tree:4x4", "lags:2", "retention:gated")
        ),
    ],
)
def test_scanned_is_unrolled(mechanism):
    """Losses, gradients layer by layer, and the statistics that calls collect."""
    model = language_model(mechanism)
    unrolled = unroll_layers(model)
    for each in (model, unrolled):
        each.set_attributes(calibrating=True, raise_if_not_found=False)
    (loss, gradient), (expected, gradients) = map(loss_and_gradient, (model, unrolled))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    stacked = gradient["decoder"]["blocks"]["stacked"]
    for layer in range(2):
        close(jax.tree.map(lambda x, n=layer: x[n], stacked), gradients["decoder"]["blocks"][layer])
    close(nnx.state(scan_layers(unrolled)), nnx.state(model))


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.few(1)
def test_rematerialisation_changes_memory_alone(scan):
    found = {}
    for remat in ("none", "dots", "full"):
        model = language_model(remat=remat)
        found[remat] = loss_and_gradient(model if scan else unroll_layers(model))
    close(found["dots"], found["none"])
    close(found["full"], found["none"])
    with pytest.raises(ValueError, match="remat must be one of 'none', 'dots', 'full'; got 'all'"):
        language_model(remat="all")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_rematerialisation_saves_memory():
    def temporaries(remat):
        graph, state = nnx.split(Encoder(8, 32, 2, remat=remat, rngs=nnx.Rngs(0)))
        gradient = jax.grad(lambda state, x: jnp.sin(nnx.merge(graph, state)(x)).sum())
        compiled = jax.jit(gradient).lower(state, jnp.ones((4, 32, 32))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporaries, ("none", "dots", "full"))
    assert none > 1.3 * dots and dots > 1.3 * full


def test_wider_parameters_widen_the_input():
    """As in unrolled layers, whose sums are of the wider dtype."""
    encoder, x = Encoder(2, 8, 2, scan_layers=True, rngs=nnx.Rngs(0)), X.astype(jnp.bfloat16)
    close(encoder(x), unroll_layers(encoder)(x))


def test_variables_without_names_are_optimised():
    encoder = Encoder(2, 8, 2, rngs=nnx.Rngs(0))
    for block in encoder.blocks:
        block.mlp.up = nnx.LoRA(8, 2, 32, base_module=block.mlp.up, rngs=nnx.Rngs(1))
    encoder = scan_layers(encoder)
    assert encoder.blocks.stacked.mlp.up.lora_a.shape == (2, 8, 2)
    nnx.Optimizer(encoder, optax.sgd(0.1, momentum=0.9), wrt=nnx.LoRAParam)


def test_decoding():
    model = language_model()

    @jax.jit
    def decoded(tokens):
        state, out = model.step(model.init_state(2), tokens[:, :5])
        _, last = model.step(state, tokens[:, 5:])
        return jnp.concatenate([out, last], axis=1)

    close(decoded(TOKENS), nnx.jit(model)(TOKENS))


def test_layers_are_read_and_replaced():
    encoder = Encoder(4, 8, 2, rngs=nnx.Rngs(0))
    blocks, x = encoder.blocks, X
    assert len(blocks) == 4 and len(list(blocks)) == 4
    assert not np.allclose(blocks[0].mlp.up.kernel, blocks[-1].mlp.up.kernel)
    before = encoder(x)
    first, blocks[0] = blocks[0], blocks[3]
    np.testing.assert_array_equal(blocks[0].mlp.up.kernel, blocks[-1].mlp.up.kernel)
    assert not np.allclose(encoder(x), before)
    blocks[0] = first
    np.testing.assert_array_equal(encoder(x), before)
    with pytest.raises(ValueError, match="block must have the structure"):
        blocks[0] = Encoder(1, 8, 2, dropout=0.5, rngs=nnx.Rngs(0)).blocks[0]
    np.testing.assert_array_equal(blocks[2:][-1].mlp.up.kernel, blocks[3].mlp.up.kernel)
    with pytest.raises(IndexError):
        blocks[4]
    with pytest.raises(ValueError, match="model must have an Encoder or a Decoder inside; got Linear"):
        scan_layers(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_mechanisms_are_replaced_in_unrolled_layers():
    encoder, x = Encoder(4, 8, 2, rngs=nnx.Rngs(0)), X
    flat = inject(encoder, lambda length: Tree.uniform(length, length))
    close(flat(x), encoder(x))
    close(scan_layers(flat)(x), encoder(x))
    mixed = inject(encoder, lambda length: Tree.uniform(length, (3, 2)), layers=[1])
    assert not np.allclose(mixed(x), encoder(x))
    with pytest.raises(ValueError, match="blocks must have the same structure"):
        scan_layers(mixed)
    changed = replace_attention(encoder, RandomFeatures(num_features=8), layers=(n for n in [0]))
    assert len(changed.blocks) == 4 and not np.allclose(changed(x), encoder(x))


def test_axes_are_named_and_layers_do_not_count_as_a_dimension_of_a_matrix():
    block, one = (Encoder(n, 8, 2, rngs=nnx.Rngs(0)).blocks[0] for n in (4, 1))
    stacked = Encoder(4, 8, 2, rngs=nnx.Rngs(0)).blocks.stacked
    kernel, bias = stacked.mlp.up.kernel, stacked.mlp.up.bias
    assert tuple(nnx.get_partition_spec(kernel).get_value()) == ("layers", "embed", "mlp")
    assert decays(kernel) and not decays(bias) and bias.ndim == 2
    specs = (nnx.get_partition_spec(nnx.state(each)) for each in (block, one))
    assert jax.tree.leaves(next(specs)) == jax.tree.leaves(next(specs))
    with nnx.logical_axis_rules(SHARDING_RULES):
        assert tuple(nnx.get_partition_spec(kernel).get_value()) == (None, "fsdp", "tensor")


def test_dropout_differs_between_layers_and_streams():
    encoder = Encoder(4, 8, 2, dropout=0.5, rngs=nnx.Rngs(0))
    first, again, other = (encoder(X, deterministic=False, rngs=nnx.Rngs(dropout=n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # Layers that all add the same constant: were their masks the same, there would be two different sums.
    block = encoder.blocks.stacked
    block.mlp.down.kernel[...] = jnp.zeros_like(block.mlp.down.kernel)
    block.mlp.down.bias[...] = jnp.ones_like(block.mlp.down.bias)
    block.attention.out.kernel[...] = jnp.zeros_like(block.attention.out.kernel)
    kept = encoder(jnp.zeros_like(X), deterministic=False, rngs=nnx.Rngs(dropout=0))
    assert len(np.unique(np.round(kept, 3)[0, 0])) > 2
