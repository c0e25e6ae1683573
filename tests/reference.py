"""Plain references, to be called in float64: they judge the kernels."""

import jax.numpy as jnp


def naive_attention(
    query,
    key,
    value,
    key_bias=None,
    mask=None,
    bias=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    segment_ids=None,
    local_window_size=None,
    query_offset=0,
    logits_soft_cap=None,
    sinks=None,
    return_residual=False,
):
    """dot_product_attention of batched arrays as its definition reads; in JAX, so gradients too."""
    batch, query_length, num_heads, head_dim = query.shape
    key_length, num_kv_heads = key.shape[1:3]
    scale = head_dim**-0.5 if scale is None else scale
    key, value = (jnp.repeat(x, num_heads // num_kv_heads, axis=2) for x in (key, value))
    i, j = jnp.arange(query_length)[:, None], jnp.arange(key_length)[None, :]
    # Positions of the queries among the keys, (B or 1, 1, T, 1).
    at = i + jnp.reshape(jnp.asarray(query_offset), (-1, 1, 1, 1))
    allowed = jnp.ones((batch, num_heads, query_length, key_length), bool)
    logits = scale * jnp.einsum("btnh,bsnh->bnts", query, key)
    if logits_soft_cap is not None:
        logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
    if is_causal:
        allowed &= j <= at
    if local_window_size is not None:
        pair = isinstance(local_window_size, tuple)
        left, right = local_window_size if pair else (local_window_size,) * 2
        allowed &= (at - left <= j) & (j <= at + right)
    if mask is not None:
        allowed &= mask
    if query_seq_lengths is not None:
        allowed &= (i < query_seq_lengths[:, None, None])[:, None]
    if key_value_seq_lengths is not None:
        allowed &= (j < key_value_seq_lengths[:, None, None])[:, None]
    if segment_ids is not None:
        query_ids, key_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        allowed &= (query_ids[:, :, None] == key_ids[:, None, :])[:, None]
    for term in (None if key_bias is None else jnp.moveaxis(key_bias, 1, 2)[:, :, None, :], bias):
        if term is not None:
            allowed &= term > -jnp.inf
            logits = logits + jnp.where(term > -jnp.inf, term, 0.0)
    top = jnp.where(allowed, logits, -jnp.inf).max(axis=-1, keepdims=True)
    top = jnp.where(top > -jnp.inf, top, 0.0)
    if sinks is not None:
        sinks = sinks[:, None, None]
        top = jnp.maximum(top, sinks)
    weights = jnp.exp(jnp.where(allowed, logits - top, -jnp.inf))
    total = weights.sum(axis=-1, keepdims=True) + (0.0 if sinks is None else jnp.exp(sinks - top))
    safe = jnp.where(total > 0, total, 1.0)
    out = jnp.einsum("bnts,bsnv->btnv", weights / safe, value)
    if not return_residual:
        return out
    log_total = jnp.where(total > 0, top + jnp.log(safe), -jnp.inf)
    return out, jnp.moveaxis(log_total[..., 0], 1, 2)
