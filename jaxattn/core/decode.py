"""What the decoding functions of all families share: sizes of a state, checks of a step, writing to a cache."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from jaxattn.core.call import Call, check_call
from jaxattn.core.checks import check_dtype, check_rank, unknown_or
from jaxattn.core.mesh import mesh_of
from jaxattn.core.padding import zero_padded_rows

State = TypeVar("State")


def check_sizes(*, num_kv_heads: int, num_heads: int | None, **sizes: int) -> int:
    """Raises unless all sizes of a decoding state are positive and K divides N; returns `num_heads`, K for None."""
    num_heads = num_kv_heads if num_heads is None else num_heads
    for name, size in {**sizes, "num_kv_heads": num_kv_heads, "num_heads": num_heads}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of num_kv_heads = {num_kv_heads}; got {num_heads}.")
    return num_heads


def check_step(
    query: Array,
    key: Array,
    value: Array,
    key_bias: Array | None,
    scale: float | None = None,
    query_seq_lengths: Array | None = None,
    log_decay: Array | None = None,
) -> Call:
    """Checks the arguments of a decoding step: T >= 1 new tokens of a batch, causal among themselves."""
    check_rank("query", query, (4,), "(B, T, N, H)")
    call = check_call(
        query,
        key,
        value,
        key_bias=key_bias,
        log_decay=log_decay,
        scale=scale,
        is_causal=True,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=query_seq_lengths,
    )
    length, key_length = query.shape[1], key.shape[1]
    if length < 1:
        raise ValueError("query must hold at least 1 new token; got 0.")
    if key_length != length:
        raise ValueError(f"key must hold the query's T = {length} new tokens; got {key_length}.")
    return call


def with_heads_of_state(call: Call, batch: int, heads: int) -> Call:
    """The call with one key head for each of the state's heads: K of them, or N after repeating keys.

    Raises:
        ValueError: the state is for another batch or number of heads, or has K heads where the key bias or the decay
            differs between query heads that share keys.
    """
    num_kv_heads, group = call.query.shape[2:4]
    if heads == num_kv_heads * group:
        call = call.with_own_keys()
    elif call.differs_in_groups:
        raise ValueError(
            f"state must have num_heads = {num_kv_heads * group}, since key_bias or log_decay differs between query "
            f"heads that share keys; got a state of {heads} heads."
        )
    found = call.query.shape[0], call.key.shape[2]
    if found != (batch, heads):
        raise ValueError(f"state must be for (batch, heads) = {found}; got {(batch, heads)}.")
    return call


def num_new(call: Call) -> Int[Array, " B"] | int:
    """How many of the T tokens of a step each sequence has: the first of its row, never more than T."""
    length, lengths = call.query.shape[1], call.query_seq_lengths
    return length if lengths is None else jnp.clip(lengths.astype(jnp.int32), 0, length)


def write(cache: Array, new: Array, length: Int[Array, " B"], count: Int[Array, " B"] | int) -> Array:
    """`cache` (B, max_length, ...) with the first `count` rows of `new` (B, T, ...) from position `length` on.

    What lies outside of it, before the first position too, is not written.
    """
    index = jnp.arange(new.shape[1], dtype=length.dtype)
    position = length[:, None] + index
    index = jnp.where((index < jnp.reshape(count, (-1, 1))) & (position >= 0), position, cache.shape[1])
    put = jax.vmap(lambda cache, new, index: cache.at[index].set(new, mode="drop"))
    return put(cache, new.astype(cache.dtype), index)


def step_on_parts(
    step: Callable[..., tuple[State, Array]], axis_name: str, state: State, cut: State, **arrays: Any
) -> tuple[State, Array]:
    """A decoding step in a program that the compiler partitions: on every device for its part of the cache.

    Args:
        step: (state, axis_name=..., **arrays) -> (state, output).
        axis_name: an axis of the mesh.
        state: whole.
        cut: the PartitionSpec of every array of the state.
        arrays: of the new tokens, whole too.

    Raises:
        ValueError: the devices do not divide the cache.
    """
    mesh = mesh_of((state, arrays))
    assert mesh is not None
    devices = mesh.shape[axis_name]
    for x, spec in zip(jax.tree.leaves(state), jax.tree.leaves(cut), strict=True):
        if axis_name in spec and x.shape[1] % devices:
            raise ValueError(
                f"max_length must be a multiple of {devices}: the axis {axis_name!r} of the mesh cuts caches into as "
                f"many parts; got {x.shape[1]}."
            )
    local = jax.shard_map(
        lambda state, arrays: step(state, axis_name=axis_name, **arrays),
        mesh=mesh,
        in_specs=(cut, PartitionSpec()),
        out_specs=(cut, PartitionSpec()),
        axis_names={axis_name},
    )
    return local(state, arrays)


def finish(call: Call, out: Array, length: Int[Array, " B"], max_length: int) -> Array:
    """(B, T, K, G, V) -> (B, T, N, V), 0 at padding, NaN for sequences with more tokens than there is room for.

    They would otherwise be silently wrong.
    """
    full = (length > max_length)[:, None, None, None]
    return jnp.where(full, jnp.nan, call.merge_heads(zero_padded_rows(call, out)))


def replace_rows(state: Any, rows: Int[Array, " R"], new: Any) -> Any:
    """A decoding state in which R sequences give way to others, while the rest of the batch stays as it is.

    That is continuous batching: a prompt is read into a state of its own, which then takes the place of a sequence
    that has ended.

    Args:
        state: of B sequences, from any `*_init_state`, `init_state` or step of this library.
        rows: which of them end, (R,).
        new: a state of R sequences, made for as many tokens.

    Returns:
        The state with `new` in place of these rows.

    Raises:
        ValueError: rows are no integers (R,), or `new` is no state of R sequences of the same model and length.

    Examples:
        >>> import jax.numpy as jnp, jaxattn
        >>> make = lambda batch: jaxattn.dot_product_attention_init_state(batch, 8, 2, 4)
        >>> x = jnp.ones((3, 5, 2, 4))
        >>> state, _ = jaxattn.dot_product_attention_step(make(3), x, x, x)
        >>> new, _ = jaxattn.dot_product_attention_step(make(1), x[:1, :2], x[:1, :2], x[:1, :2])
        >>> jaxattn.replace_rows(state, jnp.array([1]), new).length.tolist()
        [5, 2, 5]
    """

    rows = jnp.asarray(rows)
    check_dtype("rows", rows, jnp.integer, "integer")
    check_rank("rows", rows, (1,), "(R,)")
    batch = min((len(array) for array in jax.tree.leaves(state)), default=0)
    if not unknown_or(lambda rows: ((rows >= -batch) & (rows < batch)).all(), rows):
        raise ValueError(f"rows must lie below the state's B = {batch} sequences; got {rows.tolist()}.")

    def replace(old: Array, new: Array) -> Array:
        if new.shape != (*rows.shape, *old.shape[1:]):
            raise ValueError(
                f"new must hold a state of R = {rows.size} sequences, one for each of the rows: expected an array of "
                f"shape {(*rows.shape, *old.shape[1:])}; got {new.shape}."
            )
        return old.at[rows].set(new.astype(old.dtype))

    return jax.tree.map(replace, state, new)
