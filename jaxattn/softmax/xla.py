"""Dot-product attention with the scores in memory: the plain path and the reference of the others."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.arguments import Arguments, accumulation_dtype


def xla_attention(a: Arguments) -> Array:
    """softmax(s q·k + key_bias + bias) v with the (B, N, T, S) scores materialised in float32.

    Expects lengths folded into key_bias (`fold_lengths`). Differentiable by JAX, forward and reverse.
    """
    batch, query_length, num_heads, _ = a.query.shape
    key_length, num_kv_heads = a.key.shape[1:3]
    dtype = accumulation_dtype(a.query, a.key, a.value)
    grouped = a.query.reshape(batch, query_length, num_kv_heads, num_heads // num_kv_heads, -1)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, a.key, preferred_element_type=dtype) * a.scale
    scores = scores.reshape(batch, num_heads, query_length, key_length)
    if a.key_bias is not None:
        scores += _computed_once(jnp.moveaxis(a.key_bias.astype(dtype), 1, 2))[:, :, None, :]
    if a.bias is not None:
        scores += a.bias.astype(dtype)
    allowed = _allowed(a)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    # The maximum only guards exp against overflow and cancels, so no gradient flows through it.
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.moveaxis(weights.sum(axis=-1), 1, 2)[..., None]
    # Dividing after the product with v touches T×V numbers instead of T×S.
    grouped_weights = weights.reshape(batch, num_kv_heads, -1, query_length, key_length)
    out = jnp.einsum(
        "BKGTS,BSKV->BTKGV", grouped_weights.astype(a.value.dtype), a.value, preferred_element_type=dtype
    )
    out = out.reshape(batch, query_length, num_heads, -1) / jnp.where(total == 0, 1, total)
    return out.astype(a.query.dtype)


def _computed_once(x: Array) -> Array:
    """x itself, behind a product that compilers do not fuse.

    Otherwise a bias that is a computation (log sigmoid of an energy) is fused into the loop over scores and
    computed T times over: the CPU compiler does so, and ignores `lax.optimization_barrier` while at it.
    """
    pair = jnp.stack([x, jnp.zeros_like(x)], axis=-1)
    return jnp.einsum("...p,p->...", pair, jnp.ones(2, x.dtype), precision=lax.Precision.HIGHEST)


def _allowed(a: Arguments) -> Array | None:
    """The conjunction of mask, causal mask and segments, broadcastable to (B, N, T, S)."""
    allowed = a.mask
    if a.is_causal:
        positions = jnp.arange(a.query.shape[1])[:, None]
        if a.query_offset is not None:
            positions += a.query_offset
        causal = (jnp.arange(a.key.shape[1]) <= positions)[None, None]
        allowed = causal if allowed is None else allowed & causal
    if a.segment_ids is not None:
        query_ids, key_ids = a.segment_ids
        same = (query_ids[:, :, None] == key_ids[:, None, :])[:, None]
        allowed = same if allowed is None else allowed & same
    return allowed
