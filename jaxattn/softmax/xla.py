"""Dot-product attention with the scores in memory: the plain path and the reference of the others."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.platform import computed_once
from jaxattn.softmax.reach import in_reach


def xla_attention(call: Call) -> tuple[Float[Array, "B T K G V"], Float[Array, "B T K G"] | None]:
    """softmax(s q·k + key_bias + bias) v with the scores of all pairs materialised in float32, and log-sum-exp.

    Expects lengths folded into key_bias (`fold_lengths`). Differentiable by JAX, forward and reverse.
    """
    dtype = accumulation_dtype(call.query, call.key, call.value)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", call.query, call.key, preferred_element_type=dtype) * call.scale
    if call.logits_soft_cap is not None:
        scores = call.logits_soft_cap * jnp.tanh(scores / call.logits_soft_cap)
    if call.key_bias is not None:
        scores += jnp.moveaxis(computed_once(call.key_bias.astype(dtype)), 1, 3)[:, :, :, None]
    if call.bias is not None:
        scores += call.bias.astype(dtype)
    allowed = _allowed(call)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    # The maximum only guards exp against overflow and cancels, so no gradient flows through it.
    top = lax.stop_gradient(scores.max(axis=-1))
    if call.sinks is not None:
        sinks = call.sinks.astype(dtype)[:, :, None]
        top = jnp.maximum(top, lax.stop_gradient(sinks))
    top = jnp.where(top == -jnp.inf, 0, top)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    if call.sinks is not None:
        total += jnp.exp(sinks - top)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    log_total = jnp.where(empty, -jnp.inf, top + jnp.log(total)) if call.return_residual else None
    # Dividing after the product with v touches T×V numbers instead of T×S.
    weights = weights.astype(call.value.dtype)
    out = jnp.einsum("BKGTS,BSKV->BTKGV", weights, call.value, preferred_element_type=dtype)
    out = (out / _queries_second(total)[..., None]).astype(call.query.dtype)
    return out, None if log_total is None else _queries_second(log_total)


def _queries_second(x: Float[Array, "B K G T"]) -> Float[Array, "B T K G"]:
    return jnp.moveaxis(x, 3, 1)


def _allowed(call: Call) -> Bool[Array, "#B #K #G #T #S"] | None:
    """The conjunction of mask, causality, window and segments."""
    conditions = [] if call.mask is None else [call.mask]
    positions = jnp.arange(call.query.shape[1]), jnp.arange(call.key.shape[1])
    near = in_reach(call.reach, *positions, call.query_offset)
    if near is not None:
        conditions.append(near)
    if call.segment_ids is not None:
        query_ids, key_ids = call.segment_ids
        conditions.append((query_ids[:, :, None] == key_ids[:, None, :])[:, None, None])
    return functools.reduce(jnp.logical_and, conditions) if conditions else None
