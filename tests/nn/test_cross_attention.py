"""Attention to a context: every mechanism against its naive form, padding of either side, decoding, and blocks."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import (
    Attention,
    CrossCorrelation,
    Decoder,
    EnergyGated,
    Hierarchical,
    OutputGated,
    TransformerBlock,
)
from jaxattn.testing import assert_decode_matches, assert_matches_reference, assert_padding_invariant
from tests.common import naive
from tests.common.module_table import MODULES

B, T, S, D, HEADS = 2, 5, 7, 8, 2
RNG = np.random.default_rng(0)
KEPT = jnp.arange(S) < jnp.array([[S], [4]])


def refusal(row):
    """The message where a mechanism has nothing to say about other tokens, else None."""
    if row.name == "softmax-options":
        return "local_window_size needs queries and keys of the same tokens"
    return "context cannot be used with" if row.only_causal or "tree" in row.name else None


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


X, CONTEXT = normal(B, T, D), normal(B, S, D)


def each_sequence_shifted_alone(query, key, value, zero, lag_logits, *gate, mask, **_):
    """The lags' reference where the S first tokens are the context: no shift crosses to the other sequence."""
    own = jnp.broadcast_to(jnp.arange(query.shape[1]) >= S, query.shape[:2])
    key = jnp.where(mask[..., None, None], key, 0.0)
    scores = naive.cross_correlation_scores(query, key, lag_logits, None, own.astype(int))
    if gate:
        z = naive.standardised_energy(gate[0], "running", mask, None)
        scores += jax.nn.log_sigmoid(gate[1][:, None, None] * (z - gate[2][:, None, None]))
    return naive.attend(scores, value, naive.allowed_pairs(*query.shape[:2], mask, None, False))


def module(row):
    """(attention, its parameters by path, the call as a function of input, context and parameters)."""
    attention = Attention(HEADS, D, mechanism=row.mechanism, num_kv_heads=1, rngs=nnx.Rngs(0))
    graph, state, held = nnx.split(attention, nnx.Param, ...)
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    parameters = {
        ".".join(str(key.key) for key in path): leaf + 0.3 * normal(*leaf.shape) for path, leaf in leaves
    }

    @jax.jit
    def call(x, context, *parameters, context_mask=KEPT, token_mask=None):
        new = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(new, jax.tree.unflatten(structure, parameters))
        merged = nnx.merge(graph, new, held)
        return merged(x, context=context, context_mask=context_mask, token_mask=token_mask)

    return attention, parameters, call


@pytest.mark.parametrize("row", MODULES, ids=lambda row: row.name)
@pytest.mark.few(3)
def test_every_mechanism(row):
    """Values and gradients, padding of the context included; a mechanism that cannot says why."""
    if message := refusal(row):
        attention = Attention(HEADS, D, mechanism=row.mechanism, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=message):
            attention(X, context=CONTEXT)
        return
    attention, parameters, call = module(row)
    core = each_sequence_shifted_alone if row.name.startswith("lags") else row.core
    if row.draws:
        mechanism = attention.mechanism
        core = functools.partial(core, feature_map=getattr(mechanism, "inner", mechanism).feature_map)

    def reference(x, context, *values):
        """Self-attention over both, context first, in which only the context is attended to."""
        kept = jnp.concatenate([KEPT, jnp.zeros((B, T), bool)], axis=1)
        both = jnp.concatenate([jnp.where(KEPT[..., None], context, 0.0), x], axis=1)
        named = dict(zip(parameters, values, strict=True))
        return naive.layer(both, named, core, row.own, reads_keys=False, mask=kept, is_causal=False)[:, S:]

    args = (X, CONTEXT, *parameters.values())
    assert_matches_reference(call, reference, args, rtol=1e-4, atol=1e-4)

    def padded(context, mask):
        # Tokens that attend, not those attended to: one output a token of the context is what the check asks for.
        out = call(X, context, *parameters.values(), context_mask=mask)
        return jnp.broadcast_to(out[:, :1], (*context.shape[:2], D))

    assert_padding_invariant(padded, (CONTEXT,), rtol=1e-4, check_gradients=False)


def test_padding_of_the_queries_is_not_that_of_the_context():
    for mechanism in (CrossCorrelation(lags=2), OutputGated(), EnergyGated()):
        attention = nnx.jit(Attention(HEADS, D, mechanism=mechanism, rngs=nnx.Rngs(0)))
        # As long as the context, where one could be taken for the other.
        x, context = normal(B, S, D), CONTEXT
        kept = jnp.arange(S) < 5
        whole = attention(x, context=context, context_mask=jnp.broadcast_to(kept, (B, S)))
        np.testing.assert_allclose(whole, attention(x, context=context[:, :5]), atol=1e-5)
        poisoned = jnp.where(kept[:, None], x, jnp.nan)
        got = attention(poisoned, context=context, token_mask=jnp.broadcast_to(kept, (B, S)))
        np.testing.assert_allclose(got[:, :5], attention(x, context=context)[:, :5], atol=1e-5)


def test_options_of_the_layer_reach_queries_and_context():
    """Rotary by positions of either side, normalisation and the residual: as by hand."""
    attention = Attention(
        HEADS,
        D,
        num_kv_heads=1,
        rotary=10.0,
        qk_norm=1.5,
        projection_norm=True,
        query_residual=True,
        rngs=nnx.Rngs(0),
    )
    positions, of_context = jnp.arange(T) + 3, jnp.arange(S) * 2
    got = attention(X, context=CONTEXT, positions=positions, context_positions=of_context)
    together = attention._queries(X, positions), *attention._keys_and_values(CONTEXT, of_context)
    query, key, value = (np.asarray(x, np.float64) for x in together)
    scores = np.einsum("btnh,bskh->bnts", query, key) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    attended = np.einsum("bnts,bskh->btnh", weights, value)
    np.testing.assert_allclose(got, attention.out(jnp.asarray(attended + query, jnp.float32)), atol=1e-5)
    mask = jnp.asarray(RNG.random((B, 1, T, S)) < 0.7).at[..., 0].set(True)
    np.testing.assert_array_equal(
        attention(X, context=CONTEXT, mask=mask),
        attention(X, context=attention.project_context(CONTEXT), mask=mask),
    )


BLOCK = {"cross_mechanism": EnergyGated(), "num_kv_heads": 1, "rotary": 10.0}


def test_block_is_self_attention_then_cross_attention_then_mlp():
    block = TransformerBlock(D, HEADS, **BLOCK, rngs=nnx.Rngs(0))

    @jax.jit
    def by_hand(x):
        x = x + block.attention(block.attention_norm(x), is_causal=True)
        x = x + block.cross_attention(block.cross_norm(x), context=CONTEXT, context_mask=KEPT)
        return x + block.mlp(block.mlp_norm(x))

    got = jax.jit(lambda x: block(x, context=CONTEXT, context_mask=KEPT, is_causal=True))(X)
    np.testing.assert_allclose(got, by_hand(X), atol=1e-6)
    with pytest.raises(
        ValueError, match="context must be given where a block has cross-attention: it has cross"
    ):
        block(X)
    with pytest.raises(ValueError, match="it has no cross-attention; got ArrayImpl"):
        TransformerBlock(D, HEADS, rngs=nnx.Rngs(0))(X, context=CONTEXT)


def test_decoding_with_a_context_computed_once():
    decoder = Decoder(2, D, HEADS, **BLOCK, rngs=nnx.Rngs(0))
    states = []

    def step(state, x):
        states.append(state)
        return decoder.step(state, x)

    assert_decode_matches(
        jax.jit(lambda x: decoder(x, context=CONTEXT, context_mask=KEPT)),
        lambda: decoder.init_state(B, T, context=CONTEXT, context_mask=KEPT),
        step,
        (X,),
        prefill=2,
    )
    assert all(state[0]["context"].key is states[0][0]["context"].key for state in states)


def test_decoding_cross_attention_that_reads_earlier_queries_is_refused():
    block = TransformerBlock(D, HEADS, cross_mechanism=CrossCorrelation(lags=2), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="context cannot be decoded with CrossCorrelationModule"):
        block.init_state(B, T, context=CONTEXT)


@pytest.mark.parametrize("options, message", [
    ({"is_causal": True}, "is_causal is for self-attention, without a context; got True"),
    ({"segment_ids": jnp.zeros((B, T), int)}, "segment_ids is for self-attention, without a context"),
    ({"context": "none", "context_mask": KEPT}, "context_mask is for context; got"),
    ({"context": "projected", "context_mask": KEPT}, "context_mask is for a context that is not projected yet"),
    ({"context": "narrow"}, "context must have shape (B, S, D) = (2, 7, 8); got (2, 7, 4)"),
    ({"context": "alone"}, "context must have shape (B, S, D); got shape (7, 8)"),
    ({"context_mask": KEPT[:, :T]}, "context_mask must have shape (B, S) = (2, 7); got (2, 5)"),
    ({"context_mask": jnp.zeros((B, S))}, "context_mask must be bool, True at real tokens; got dtype float32"),
    ({"token_mask": KEPT}, "token_mask must have shape (B, T) = (2, 5); got (2, 7)"),
])  # fmt: skip
def test_bad_calls(no_typecheck, options, message):
    attention = Attention(HEADS, D, rngs=nnx.Rngs(0))
    contexts = {"array": CONTEXT, "projected": attention.project_context(CONTEXT), "none": None}
    contexts |= {"narrow": CONTEXT[..., :4], "alone": CONTEXT[0]}
    options = {**options, "context": contexts[options.get("context", "array")]}
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(X, **options)


@pytest.mark.parametrize("options", [{"context_mask": KEPT}, {"context_positions": jnp.arange(S)}])
def test_what_is_said_of_no_context_is_refused(options):
    decoder, message = Decoder(1, D, HEADS, rngs=nnx.Rngs(0)), f"{next(iter(options))} is for context; got"
    with pytest.raises(ValueError, match=message):
        decoder(X, **options)
    with pytest.raises(ValueError, match=message):
        decoder.init_state(B, T, **options)


def test_packed_sequences_do_not_share_a_context():
    decoder = Decoder(1, D, HEADS, **BLOCK, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="segment_ids is for a block without cross-attention"):
        decoder(X, context=CONTEXT, segment_ids=jnp.zeros((B, T), int))


def test_a_projected_context_is_of_one_block(no_typecheck):
    """A block decodes from it as it attends to it; a stack refuses it, as each block has its own projections."""
    decoder = Decoder(1, D, HEADS, **BLOCK, rngs=nnx.Rngs(0))
    block = decoder.blocks[0]
    projected = block.cross_attention.project_context(CONTEXT, context_mask=KEPT)
    _, got = block.step(block.init_state(B, T, context=projected), X)
    expected = block(X, context=CONTEXT, context_mask=KEPT, is_causal=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for call in (lambda: decoder(X, context=projected), lambda: decoder.init_state(B, T, context=projected)):
        with pytest.raises(ValueError, match=r"context must be an array .*; got ProjectedContext"):
            call()


def test_a_tree_with_a_context_is_refused_in_a_block():
    block = TransformerBlock(D, HEADS, cross_mechanism=Hierarchical((2,)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="context cannot be used with HierarchicalModule"):
        block(X, context=CONTEXT)
