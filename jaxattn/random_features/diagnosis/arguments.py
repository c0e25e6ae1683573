"""Checks of the arguments of `diagnose`, and its tensors in one form."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.call import accumulation_dtype, check_qkv
from jaxattn.core.checks import check_broadcastable, check_choice, check_dtype, check_shape
from jaxattn.core.padding import padding_key_bias
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.weights import WEIGHTS


class Tensors(NamedTuple):
    """query (B, T, N, H), key (B, S, K, H), value (B, S, K, V), key_bias (B, S, N) and token masks (B, T), (B, S).

    Masked tokens are 0.
    """

    query: Array
    key: Array
    value: Array
    key_bias: Array
    query_mask: Array
    key_mask: Array


def check_pairs(pairs: Sequence[str | tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs (component, weights) without repetitions."""
    names = []
    for pair in [pairs] if isinstance(pairs, str) else pairs:
        parts = tuple(pair.split("-")) if isinstance(pair, str) else tuple(pair)
        if len(parts) != 2:
            raise ValueError(f"pairs must hold 'component-weights' or (component, weights); got {pair!r}.")
        check_choice("pairs: component", parts[0], COMPONENTS)
        check_choice("pairs: weights", parts[1], WEIGHTS)
        names.append(parts)
    if not names:
        raise ValueError("pairs must name at least one pair; got none.")
    return list(dict.fromkeys(names))


def check_num_features(num_features: Sequence[int]) -> list[int]:
    """The numbers of features, ascending and without repetitions."""
    if not num_features or any(size < 1 for size in num_features):
        raise ValueError(
            f"num_features must hold at least one number, all at least 1; got {tuple(num_features)}."
        )
    return sorted(set(num_features))


def check_tensors(
    query: Array, key: Array, value: Array, key_bias: Array | None, token_mask: Array | None
) -> Tensors:
    """The tensors with a batch axis, in float32, masked tokens zeroed."""
    check_qkv(query, key, value)
    batched = query.ndim == 4
    if token_mask is not None:
        check_dtype("token_mask", token_mask, jnp.bool_, "boolean, True where a token counts")
        check_shape("token_mask", token_mask, key.shape[:-2], "(B, S)" if batched else "(S,)")
    if key_bias is not None:
        check_dtype("key_bias", key_bias, jnp.floating, "floating point")
        layout = "(B, S, N)" if batched else "(S, N)"
        check_broadcastable("key_bias", key_bias, (*key.shape[:-2], query.shape[-2]), layout)
    bias = padding_key_bias(token_mask, key_bias)
    if not batched:
        given = (query, key, value, bias, token_mask)
        query, key, value, bias, token_mask = jax.tree.map(lambda x: x[None], given)
    dtype = accumulation_dtype(query)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    (batch, queries, heads), length = query.shape[:3], key.shape[1]
    bias = jnp.zeros((), dtype) if bias is None else bias.astype(dtype)
    bias = jnp.broadcast_to(bias, (batch, length, heads))
    key_mask = (bias > -jnp.inf).any(axis=-1)
    query_mask = jnp.ones((batch, queries), bool)
    if token_mask is not None and queries == length:
        query_mask = token_mask
    query = jnp.where(query_mask[..., None, None], query, 0)
    key, value = (jnp.where(key_mask[..., None, None], x, 0) for x in (key, value))
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not bool(jnp.isfinite(x).all()):
            raise ValueError(f"{name} must be finite where it counts; got NaN or infinity.")
    if bool((jnp.isnan(bias) | (bias == jnp.inf)).any()):
        raise ValueError("key_bias must be a number or −inf; got NaN or infinity.")
    return Tensors(query, key, value, bias, query_mask, key_mask)
