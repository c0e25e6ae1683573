"""Linear attention one call at a time, over a state of constant size."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.core.call import Call
from jaxattn.core.checks import check_flag
from jaxattn.core.decode import check_sizes, check_step, with_heads_of_state
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.padding import fold_lengths, query_is_valid, zero_padded_rows, zero_padding
from jaxattn.core.platform import by_platform
from jaxattn.core.pytree import serializable
from jaxattn.linear.decay import check_decay, step_decayed
from jaxattn.linear.heads import over_batch
from jaxattn.linear.padded import pad_to_blocks
from jaxattn.linear.passes import causal_pass, empty_state
from jaxattn.linear.plan import IDENTITY, FeatureFunctions, Parameters, Plan, choose_tiling, make_plan
from jaxattn.linear.sums import State, Sums


@serializable
class LinearAttentionState(NamedTuple):
    """All that later tokens need of the earlier ones, whatever their number.

    total (B, heads, M, V + 1): Σ_j e^(c_j − top) φ_k,j [v_j, 1] with c the key bias; top (B, heads): the largest c
    so far, −inf before the first key. Without normalisation the sums are relative to nothing, and decay.
    """

    total: Float[Array, "B heads M V1"]
    top: Float[Array, "B heads"]


def linear_attention_init_state(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> LinearAttentionState:
    """The state before the first token.

    Args:
        batch: sequences decoded together, B.
        num_kv_heads: key/value heads, K.
        head_dim: width M of the features.
        num_heads: query heads, N, if the key bias differs between query heads that share keys: each then keeps sums
            of its own. None for sums a key/value head.
        value_dim: width V of the values, `head_dim` when None.
        dtype: dtype of the sums.

    Returns:
        A pytree of fixed shapes, independent of how many tokens will follow.

    Raises:
        ValueError: a size is not positive, or K does not divide N.

    Examples:
        >>> linear_attention_init_state(2, 4, 16, value_dim=8).total.shape
        (2, 4, 16, 9)
    """
    value_dim = head_dim if value_dim is None else value_dim
    heads = check_sizes(
        batch=batch, num_kv_heads=num_kv_heads, num_heads=num_heads, head_dim=head_dim, value_dim=value_dim
    )
    return LinearAttentionState(
        jnp.zeros((batch, heads, head_dim, value_dim + 1), dtype), jnp.full((batch, heads), -jnp.inf, dtype)
    )


@automatic_axes(same, but_width)
def linear_attention_step(
    state: LinearAttentionState,
    phi_q: Float[Array, "B T N M"],
    phi_k: Float[Array, "B T K M"],
    value: Float[Array, "B T K V"],
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    log_decay: Float[Array, "#B #T #N"] | None = None,
    normalize: bool = True,
    query_seq_lengths: Int[Array, " B"] | None = None,
    chunk_size: int | None = None,
) -> tuple[LinearAttentionState, Float[Array, "B T N V"]]:
    """Lets T new tokens attend causally to all tokens so far and to each other, and adds them to the state.

    Any split of a sequence into calls gives the causal `linear_attention` of the whole, up to rounding; a call of one
    token costs O(M V) a head however many came before.

    Args:
        state: from `linear_attention_init_state` or an earlier step.
        phi_q: (B, T, N, M), T >= 1 new tokens.
        phi_k: (B, T, K, M).
        value: (B, T, K, V).
        key_bias: (B or 1, T, N or 1), log of the factor on φ_k; −inf removes the key for good.
        log_decay: (B or 1, T or 1, N or 1), as in `linear_attention`.
        normalize: as in `linear_attention`; the same in every step.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has; see `dot_product_attention_step`.
        chunk_size: tokens a chunk when T is large; None for 64 on a CPU, 128 elsewhere.

    Returns:
        (new state, output (B, T, N, V) in the dtype of `value`).

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> state = linear_attention_init_state(1, 2, 4, value_dim=8)
        >>> phi, value = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 8))
        >>> state, out = linear_attention_step(state, phi, phi, value)
        >>> out.shape
        (1, 3, 2, 8)
    """
    call = check_step(phi_q, phi_k, value, key_bias, query_seq_lengths=query_seq_lengths, log_decay=log_decay)
    call = check_decay(call, check_flag("normalize", normalize))
    if normalize:
        state, out = step_features(state, call, IDENTITY, [], chunk_size)
    else:
        state, out = _step_without_normalisation(state, call, chunk_size)
    return state, out.astype(value.dtype)


def _step_without_normalisation(
    state: LinearAttentionState, call: Call, chunk_size: int | None
) -> tuple[LinearAttentionState, Float[Array, "B T N V"]]:
    call = _with_weights(state, call)
    _check_sums(state, (call.key.shape[2], call.key.shape[3], call.value.shape[3]))
    if call.query_seq_lengths is not None:
        decay = jnp.where(query_is_valid(call)[:, :, 0], call.log_decay, 0)
        call = call.replace(log_decay=decay)
    total, out = by_platform(
        lambda platform: choose_tiling(chunk_size, call, platform),
        step_decayed,
        state.total.astype(call.key_bias.dtype),
        call.replace(query_seq_lengths=None),
    )
    state = state._replace(total=total.astype(state.total.dtype))
    return state, call.merge_heads(zero_padded_rows(call, out))


def _with_weights(state: LinearAttentionState, call: Call) -> Call:
    """The call with the heads of the state, what is padding or removed zeroed."""
    return with_heads_of_state(fold_lengths(zero_padding(call)), *state.top.shape).with_key_weights()


def _check_sums(state: LinearAttentionState, sizes: tuple[int, ...]) -> None:
    """Raises unless the state has sums of these (heads, M, V)."""
    expected = (*sizes[:-1], sizes[-1] + 1)
    if state.total.shape[1:] != expected:
        raise ValueError(
            f"state must have sums of shape (heads, M, V + 1) = {expected} for these features and values; "
            f"got {state.total.shape[1:]}."
        )


def step_features(
    state: LinearAttentionState,
    call: Call,
    features: FeatureFunctions,
    parameters: Parameters,
    chunk_size: int | None,
) -> tuple[LinearAttentionState, Float[Array, "B T N V"]]:
    """`linear_attention_step` with features made on the way, its output in the dtype of `Call.with_key_weights`."""
    call = _with_weights(state, call)
    length = call.query.shape[1]
    parameters = features.repeat_parameters(parameters, state.top.shape[1])

    def choose(platform: str) -> Plan:
        return make_plan(features, choose_tiling(chunk_size, call, platform), length, length, is_causal=True)

    _check_sums(state, empty_state(choose("cpu"), parameters, call).sums.total.shape)
    state, out = by_platform(choose, _step, state, parameters, call.replace(query_seq_lengths=None))
    return state, call.merge_heads(zero_padded_rows(call, out[:, :length]))


def _step(
    plan: Plan, state: LinearAttentionState, parameters: Parameters, call: Call
) -> tuple[LinearAttentionState, Array]:
    dtype = call.key_bias.dtype

    def sequence(tree: tuple[Call, Array, Array]) -> tuple[Array, Array, Array]:
        x, total, top = tree
        wide = total.astype(dtype)
        before = State(Sums(wide[..., :-1], wide[..., -1]), top.astype(dtype), None)
        last, _, out, _ = causal_pass(plan, parameters, x, before)
        return last.sums.joined().astype(total.dtype), last.top.astype(top.dtype), out

    total, top, out = over_batch(plan, sequence, (pad_to_blocks(call, plan), *state))
    return LinearAttentionState(total, top), out
