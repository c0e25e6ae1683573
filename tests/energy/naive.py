"""What the tests of energy gates share: inputs, the compiled kernels, and the definition with loops."""

import jax
import jax.numpy as jnp

import jaxattn

# Compiled whole: operation by operation the suite would take minutes longer.
energy_gate = jax.jit(jaxattn.energy_gate, static_argnames=("normalization", "is_causal", "allow_leak"))
energy_gate_step = jax.jit(jaxattn.energy_gate_step, static_argnames="normalization")
energy_gated_attention = jax.jit(
    jaxattn.energy_gated_attention,
    static_argnames=("normalization", "is_causal", "allow_leak", "scale", "implementation"),
)
energy_gated_attention_step = jax.jit(
    jaxattn.energy_gated_attention_step, static_argnames=("normalization", "scale")
)

B, T, N, K, H, V = 2, 11, 4, 2, 8, 5
NORMALIZATIONS = ["running", "sequence", "prefix", None]
ALPHA = jnp.array([2.0, 1.0, -1.5, 4.0])
TAU = jnp.array([0.0, 0.5, -0.3, 1.0])


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def qkve(dtype=jnp.float32, length=T):
    return (
        normal(0, B, length, N, H, dtype=dtype),
        normal(1, B, length, K, H, dtype=dtype),
        normal(2, B, length, K, V, dtype=dtype),
        normal(3, B, length, N, dtype=dtype),
    )


def naive_log_gate(energy, alpha, tau, normalization, keep=None):
    """(B, N, T, S) of log g_ij, with one mean and deviation for every pair (i, j)."""
    e = jnp.moveaxis(energy, 1, 2)  # (B, N, S)
    i, j, k = jnp.meshgrid(*(jnp.arange(e.shape[-1]),) * 3, indexing="ij")
    enters = {"running": k <= j, "prefix": k <= i, "sequence": k >= 0, None: k < 0}[normalization]
    enters = enters if keep is None else enters & keep[:, None, None, None, :]
    enters = jnp.broadcast_to(enters, (*e.shape[:2], *k.shape)).astype(e.dtype)
    count = jnp.maximum(enters.sum(-1), 1)
    mean = jnp.einsum("bnijk,bnk->bnij", enters, e) / count
    deviation = e[:, :, None, None, :] - mean[..., None]
    variance = (enters * deviation**2).sum(-1) / count
    z = e[:, :, None, :]
    if normalization is not None:
        z = jnp.where(variance > 0, (z - mean) / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    alpha, tau = (jnp.broadcast_to(x, e.shape[1:2])[:, None, None] for x in (alpha, tau))
    return jnp.log(1 / (1 + jnp.exp(-alpha * (z - tau))))


def naive_attention(q, k, v, energy, alpha, tau, normalization, is_causal, keep=None):
    """The published form: softmax weights times the gate, renormalised."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(q.shape[-1])
    allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool)) if is_causal else jnp.ones(scores.shape[-2:], bool)
    allowed = jnp.broadcast_to(allowed, scores.shape)
    if keep is not None:
        allowed &= keep[:, None, None, :]
    p = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    p = jnp.where(allowed, p, 0) * jnp.exp(naive_log_gate(energy, alpha, tau, normalization, keep))
    total = p.sum(-1, keepdims=True)
    return jnp.einsum("bnts,bsnv->btnv", p / jnp.where(total > 0, total, 1), v)


# The gate
