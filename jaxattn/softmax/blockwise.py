"""Memory-bounded dot-product attention in plain XLA: blocks, online softmax, recomputation backward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.mesh import vary_like
from jaxattn.softmax.blocks import (
    Blocks,
    Operands,
    Structure,
    block_products,
    block_scores,
    cut_into_blocks,
    dense_start,
    key_blocks,
    query_blocks,
    through_cap,
)


def blockwise_attention(
    call: Call, query_block: int = 256, key_block: int = 512
) -> tuple[Float[Array, "B T K G V"], Float[Array, "B T K G"]]:
    """Flash-style attention and its log-sum-exp: O(T + S) memory, forward and backward.

    For each block of queries a running maximum m, normaliser l and weighted sum o are updated a block of keys
    at a time:

        m' = max(m, max_j s_j),  l' = e^(m − m') l + Σ e^(s_j − m'),  o' = e^(m − m') o + Σ e^(s_j − m') v_j.

    A sink is where m and l start: at its score and 1.

    Only the output and log-sum-exp are saved; the backward pass recomputes p_j = e^(s_j − lse) a block at a time
    and yields gradients for query, key, value, key_bias, bias and sinks. With a cotangent g of the log-sum-exp
    ds_j = p_j (do · v_j − do · o + g). Blocks that causality and the local
    window remove whole are never visited. Reverse mode only (`jax.custom_vjp`): forward-mode and second
    derivatives are not defined.

    Reference: Dao et al. 2022, "FlashAttention", algorithms 1 and 4; Rabe & Staats 2021, "Self-attention does
    not need O(n²) memory".
    """
    blocks, *operands = cut_into_blocks(call, query_block, key_block)
    # Marked before the kernel: what is replicated then gets the sum of the cotangents of all devices.
    out, log_total = _attend_compiled(blocks, *vary_like(operands, operands))

    def join(x: Array) -> Array:
        """(nq, B, K, G, bq, ...) -> (B, T, K, G, ...)."""
        x = jnp.moveaxis(x, (0, 4), (1, 2))
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, : call.query.shape[1]]

    return join(out), join(jnp.where(log_total == jnp.inf, -jnp.inf, log_total))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: Blocks, x: Operands, structure: Structure) -> tuple[Array, Array]:
    """(nq, B, K, G, bq, V) and the log-sum-exp, +inf in rows without keys."""
    nq, nk = x.query.shape[0], x.key.shape[0]
    dtype = accumulation_dtype(x.query, x.key, x.value)
    rows = x.query.shape[1:-1]
    sinks = None if x.sinks is None else x.sinks[:, :, None]

    def query_step(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        def key_step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = carry
            products = block_products(blocks, x, i, j)
            scores = block_scores(blocks, x, structure, products, i, j)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            safe_top = jnp.where(new_top == -jnp.inf, 0, new_top)
            decay = jnp.exp(top - safe_top)
            weights = jnp.exp(scores - safe_top[..., None])
            total = total * decay + weights.sum(axis=-1)
            update = jnp.einsum(
                "BKGTS,BKSV->BKGTV", weights.astype(x.value.dtype), x.value[j], preferred_element_type=dtype
            )
            return new_top, total, out * decay[..., None] + update

        top = jnp.full(rows, -jnp.inf, dtype) if sinks is None else jnp.broadcast_to(sinks, rows)
        start = (
            top,
            (top > -jnp.inf).astype(dtype),
            jnp.zeros((*rows, x.value.shape[-1]), dtype),
        )
        top, total, out = lax.fori_loop(
            *key_blocks(blocks, structure, i, nk), key_step, vary_like(start, x, structure)
        )
        empty = total == 0
        out = out / jnp.where(empty, 1, total)[..., None]
        # +inf makes every recomputed weight exp(s − lse) of a row without keys zero.
        log_total = jnp.where(empty, jnp.inf, top + jnp.log(jnp.where(empty, 1, total)))
        return None, (out.astype(x.query.dtype), log_total)

    _, (out, log_total) = lax.scan(query_step, None, jnp.arange(nq))
    return out, log_total


def _attend_forward(blocks: Blocks, x: Operands, structure: Structure):
    out, log_total = _attend(blocks, x, structure)
    return (out, log_total), (x, structure, out, log_total)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sums the axes that are 1 in `shape`: the transpose of broadcasting."""
    axes = tuple(n for n, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want)
    return x.sum(axis=axes, keepdims=True) if axes else x


def _attend_backward(blocks: Blocks, residuals: Any, grads_out: tuple[Array, Array]):
    grad_out, grad_log_total = grads_out
    x, structure, out, log_total = residuals
    nq, nk = x.query.shape[0], x.key.shape[0]
    dtype = accumulation_dtype(x.query, x.key, x.value)
    # Σ_j p_j dp_j = o·do, one number a query row.
    delta = (out.astype(dtype) * grad_out.astype(dtype)).sum(axis=-1) - grad_log_total

    def key_step(carry, j: Array):
        key, value = x.key[j], x.value[j]

        def query_step(i: Array, carry):
            grad_query, grad_bias, grad_key, grad_value, grad_key_bias = carry
            query, grad = x.query[i], grad_out[i]
            products = block_products(blocks, x, i, j, keys_first=True)  # (B, K, bk, G, bq)
            scores = block_scores(blocks, x, structure, products, i, j, keys_first=True)
            weights = jnp.exp(scores - log_total[i][:, :, None])
            grad_value += jnp.einsum(
                "BKSGT,BKGTV->BKSV", weights.astype(grad.dtype), grad, preferred_element_type=dtype
            )
            grad_weights = jnp.einsum("BKSV,BKGTV->BKSGT", value, grad, preferred_element_type=dtype)
            grad_scores = weights * (grad_weights - delta[i][:, :, None])
            if grad_key_bias is not None:
                grad_key_bias += _sum_to(jnp.moveaxis(grad_scores.sum(axis=-1), 2, 3), grad_key_bias.shape)
            if grad_bias is not None:
                starts, sizes = dense_start(blocks, grad_bias, i, j)
                update = _sum_to(jnp.moveaxis(grad_scores, 2, -1), tuple(sizes))
                update += lax.dynamic_slice(grad_bias, starts, sizes)
                grad_bias = lax.dynamic_update_slice(grad_bias, update, starts)
            # The factor `scale` on these two products waits for the sums at the end.
            grad_products = through_cap(blocks, grad_scores, products).astype(query.dtype)
            grad_key += jnp.einsum("BKSGT,BKGTH->BKSH", grad_products, query, preferred_element_type=dtype)
            # Summed as (H, G T): as (G T, H) this product takes a CPU twice as long.
            step = jnp.matmul(
                key.mT, grad_products.reshape(*key.shape[:-1], -1), preferred_element_type=dtype
            )
            grad_query = grad_query.at[i].add(step.reshape(grad_query.shape[1:]))
            return grad_query, grad_bias, grad_key, grad_value, grad_key_bias

        start = (
            *carry,
            jnp.zeros(key.shape, dtype),
            jnp.zeros(value.shape, dtype),
            None if x.key_bias is None else jnp.zeros(x.key_bias.shape[1:], dtype),
        )
        start = vary_like(start, residuals, grad_out)
        *carry, grad_key, grad_value, grad_key_bias = lax.fori_loop(
            *query_blocks(blocks, structure, j, nq), query_step, vary_like(start, residuals, grad_out)
        )
        grad_key = (grad_key * blocks.scale).astype(key.dtype)
        return tuple(carry), (grad_key, grad_value.astype(value.dtype), grad_key_bias)

    carry = (
        jnp.zeros_like(jnp.moveaxis(x.query, -1, 3), dtype),
        None if x.bias is None else jnp.zeros(x.bias.shape, dtype),
    )
    (grad_query, grad_bias), (grad_key, grad_value, grad_key_bias) = lax.scan(
        key_step, vary_like(carry, residuals, grad_out), jnp.arange(nk)
    )
    grads = Operands(
        query=(jnp.moveaxis(grad_query, 3, -1) * blocks.scale).astype(x.query.dtype),
        key=grad_key,
        value=grad_value,
        key_bias=grad_key_bias,
        bias=None if grad_bias is None else grad_bias.astype(x.bias.dtype),
        sinks=None if x.sinks is None else _grad_sinks(x.sinks, log_total, delta),
    )
    return grads, None


def _grad_sinks(sinks: Float[Array, "K G"], log_total: Array, delta: Array) -> Float[Array, "K G"]:
    """A sink is a key of value 0, so that its score has the gradient −p delta."""
    weights = jnp.exp(sinks[:, :, None] - log_total)  # (nq, B, K, G, bq)
    return -(weights * delta).sum(axis=(0, 1, 4))


_attend.defvjp(_attend_forward, _attend_backward)
# Compiled once a shape, so that calls outside of any jit do not compile their loops anew.
_attend_compiled = jax.jit(_attend, static_argnums=0)
