"""Exact attention, averaging, and the error of every draw of a feature map: what `diagnose` measures."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.random_features.diagnosis.arguments import Tensors
from jaxattn.random_features.feature_map import FeatureMap
from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights.base import Weights


class Data(NamedTuple):
    """x (B, Q, N, H), y (B, S, K, H), v (B, S, K, V), key_bias (B, S, N), valid (B, Q), position (Q,).

    x and y hold the root of the scale; Q are the measured queries.
    """

    x: Array
    y: Array
    v: Array
    key_bias: Array
    valid: Array
    position: Array


@partial(jax.jit, static_argnums=4)
def prepare_data(
    tensors: Tensors, position: Array, scale: Array | float, rms: Array | float, is_causal: bool
) -> tuple[Data, Moments, Array, Array]:
    """The data, its statistics, and sums of squares over the measured queries of averaging minus exact and of exact.

    Queries and keys are normalised to `rms` unless it is 0.
    """

    def sized(x: Array) -> Array:
        square = jnp.square(x).mean(axis=-1, keepdims=True)
        factor = jnp.where(rms == 0, 1, rms * jax.lax.rsqrt(jnp.maximum(square, 1e-12)))
        return (x * factor * jnp.sqrt(scale)).astype(x.dtype)

    x, y, query_mask = sized(tensors.query), sized(tensors.key), tensors.query_mask
    data = Data(x[:, position], y, tensors.value, tensors.key_bias, query_mask[:, position], position)

    def one(sequence: Data) -> tuple[Array, Array]:
        allowed, log_prior, _, exact, _ = _exact(sequence, is_causal)
        uniform = jnp.where(allowed, jnp.exp(log_prior), 0)
        wrong = _attend(uniform, sequence.v) - exact
        return _sum_of_squares(wrong, sequence).sum(), _sum_of_squares(exact, sequence).sum()

    averaging, exact = jax.lax.map(one, _sequences(data))
    return data, Moments.of(x, y, query_mask, tensors.key_mask), averaging.sum(), exact.sum()


@partial(jax.jit, static_argnums=(1, 2, 3))
def draw_weights(keys: Array, head_dim: int, num_rows: int, weights: str) -> Weights:
    """The weights of all draws; not part of `measure`, so that components share the compiled code."""
    return jax.lax.map(lambda key: FeatureMap.create(key, head_dim, num_rows, "posrf", weights).weights, keys)


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def measure(
    data: Data,
    moments: Moments,
    keys: Array,
    drawn: Weights,
    component: str,
    family: str,
    num_features: int,
    is_causal: bool,
) -> tuple[Array, Array, Array, Array]:
    """Squared errors (draws, N) and squared outputs (N,), and both relative variances (draws,)."""

    def draw(key_and_weights: tuple[Array, Weights]) -> FeatureMap:
        key, weights = key_and_weights
        made = FeatureMap.create(key, weights.head_dim, num_features, component, family, allow_unusable=True)
        made = dataclasses.replace(made, weights=weights)
        return made.with_moments(moments) if made.component.calibrates else made

    maps = jax.lax.map(draw, (keys, drawn))

    def one(sequence: Data) -> tuple[Array, ...]:
        allowed, log_prior, scores, exact, attention = _exact(sequence, is_causal)
        counts = sequence.valid & allowed.any(axis=(0, 1, 3))
        kept = allowed & counts[:, None]

        def of_draw(feature_map: FeatureMap) -> tuple[Array, Array, Array]:
            phi_q, scale_q = feature_map.query(sequence.x, scale=1.0)
            phi_k, scale_k = feature_map.key(sequence.y, scale=1.0)
            groups = phi_k.shape[-2]
            phi_q = phi_q.reshape(phi_q.shape[0], groups, -1, phi_q.shape[-1])
            scale_q = jnp.moveaxis(scale_q.reshape(scale_q.shape[0], groups, -1), 0, 2)
            product = jnp.einsum("tkgm,skm->kgts", phi_q, phi_k)
            of_key = scale_k.T[:, None, None]  # (K, 1, 1, S)
            # Relative to the largest of the row, which cancels.
            log_weight = jnp.where(allowed, of_key + log_prior, -jnp.inf)
            top = log_weight.max(axis=-1, keepdims=True)
            weight = product * jnp.exp(log_weight - jnp.where(jnp.isfinite(top), top, 0))
            wrong = _attend(weight, sequence.v) - exact
            # Estimated over exact, capped so that its square is a float32.
            ratio = product * jnp.exp(jnp.minimum(scale_q[..., None] + of_key - scores, 40.0))
            square = jnp.where(kept, jnp.square(ratio - 1), 0)
            return _sum_of_squares(wrong, sequence), (attention * square).sum(), square.sum()

        wrong, weighted, plain = jax.lax.map(of_draw, maps)
        rows = counts.sum() * (scores.shape[0] * scores.shape[1])
        return wrong, weighted, plain, _sum_of_squares(exact, sequence), rows, kept.sum()

    wrong, weighted, plain, exact, rows, kept = jax.tree.map(
        lambda x: x.sum(axis=0), jax.lax.map(one, _sequences(data))
    )
    return wrong, exact, weighted / jnp.maximum(rows, 1), plain / jnp.maximum(kept, 1)


def _sequences(data: Data) -> Data:
    """The data with a batch axis on every array, to be mapped over."""
    return data._replace(position=jnp.broadcast_to(data.position, data.valid.shape))


def _exact(s: Data, is_causal: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Of one sequence: allowed pairs, their log weight without the score, scores, output and attention.

    All but the output (Q, N, V) are (K, G, Q, S) or broadcast to it.
    """
    groups = s.y.shape[1]
    x = s.x.reshape(s.x.shape[0], groups, -1, s.x.shape[-1])
    scores = jnp.einsum("tkgh,skh->kgts", x, s.y)
    log_prior = s.key_bias.T.reshape(groups, -1, 1, s.key_bias.shape[0])
    # A bias common to all keys cancels.
    top = log_prior.max(axis=-1, keepdims=True)
    log_prior = log_prior - jnp.where(jnp.isfinite(top), top, 0)
    allowed = jnp.broadcast_to(log_prior > -jnp.inf, scores.shape)
    if is_causal:
        allowed &= jnp.arange(s.y.shape[0]) <= s.position[:, None]
    logits = jnp.where(allowed, scores + log_prior, -jnp.inf)
    top = logits.max(axis=-1, keepdims=True)
    attention = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
    attention /= jnp.maximum(attention.sum(axis=-1, keepdims=True), jnp.finfo(attention.dtype).tiny)
    return allowed, log_prior, scores, _attend(attention, s.v), attention


def _attend(weight: Array, v: Array) -> Array:
    """Σ_j w_ij v_j / Σ_j w_ij of weights (K, G, Q, S), as (Q, N, V); 0 where no key is left."""
    total = weight.sum(axis=-1)
    # A floor as in linear attention; the quotient stays finite.
    floor = jnp.finfo(weight.dtype).tiny
    out = jnp.einsum("kgts,skv->tkgv", weight, v)
    out = out / jnp.moveaxis(jnp.where(jnp.abs(total) < floor, floor, total), 2, 0)[..., None]
    return out.reshape(out.shape[0], -1, out.shape[-1])


def _sum_of_squares(x: Array, sequence: Data) -> Array:
    """(N,) over the measured queries that count and the width of the values."""
    return jnp.where(sequence.valid[:, None, None], jnp.square(x), 0).sum(axis=(0, 2))
