"""Errors of attention by random features against softmax attention, on given queries, keys and values."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.suites.drawn_rows import DrawnRows, draw_rows
from jaxattn import COMPONENTS, FeatureMap


class Data(NamedTuple):
    """Arrays (L, T, N, H) of L independent problems, such as layers; every one has statistics of its own."""

    query: jax.Array
    key: jax.Array
    value: jax.Array


def random_data(seed: int, problems: int, length: int, heads: int, head_dim: int, variance: float) -> Data:
    """q, k ~ N(0, variance) and v ~ N(0, 1)."""
    query, key, value = jax.random.normal(jax.random.key(seed), (3, problems, length, heads, head_dim))
    return Data(variance**0.5 * query, variance**0.5 * key, value)


def load_data(path: Any, length: int | None = None) -> Data:
    """What a file of queries, keys and values holds; keys of grouped queries are repeated.

    Args:
        path: an .npz file with q, k and v, each (T, N, H) or (L, T, N, H) with L layers or sequences.
        length: takes the first so many tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an array is missing or has a wrong shape.
    """
    with np.load(path) as file:
        if missing := {"q", "k", "v"} - set(file.files):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: it must hold q, k and v.")
        arrays = [np.asarray(file[name], np.float32) for name in "qkv"]
    if {x.ndim for x in arrays} == {3}:
        arrays = [x[None] for x in arrays]
    query, key, value = arrays
    if {x.ndim for x in arrays} != {4} or key.shape[:3] != value.shape[:3] or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"{path}: q, k, v must be (L, T, N, H) or (T, N, H); got {[x.shape for x in arrays]}."
        )
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise ValueError(f"{path}: q and k must agree in L, T and H; got {query.shape} and {key.shape}.")
    group = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, group, axis=2) for x in (key, value))
    return Data(*(jnp.asarray(x[:, :length]) for x in (query, key, value)))


def _mean(weights: jax.Array, value: jax.Array) -> jax.Array:
    """(L, T, N, V) of weights (L, N, T, S) that need not add up to 1."""
    sums = jnp.einsum("lnts,lsnv->ltnv", weights, value)
    return sums / jnp.moveaxis(weights.sum(axis=-1), 1, 2)[..., None]


class Problem(NamedTuple):
    """Data, what is attended to (T, S), the scores (L, N, T, S) and softmax attention (L, T, N, H)."""

    data: Data
    seen: jax.Array
    logits: jax.Array
    target: jax.Array


@partial(jax.jit, static_argnames="is_causal")
def pose(data: Data, is_causal: bool) -> Problem:
    """The problem of these data."""
    index = jnp.arange(data.query.shape[1])
    seen = (index[:, None] >= index) | (not is_causal)
    logits = jnp.einsum("ltnh,lsnh->lnts", data.query, data.key) * data.query.shape[-1] ** -0.5
    target = _mean(jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), data.value)
    return Problem(data, seen, logits, target)


@jax.jit
def error_of_plain_mean(problem: Problem) -> jax.Array:
    """The error (L,) if all weights were equal: what an estimate must beat to be worth anything."""
    weights = jnp.broadcast_to(problem.seen, problem.logits.shape).astype(jnp.float32)
    return _relative_error(_mean(weights, problem.data.value), problem.target)


def _relative_error(out: jax.Array, target: jax.Array) -> jax.Array:
    """||out − target|| / ||target|| of every problem, (L,)."""

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3)))

    return norm(out - target) / norm(target)


def feature_errors(
    problem: Problem, component: str, weights: str, num_features: int, keys: jax.Array
) -> dict[str, np.ndarray]:
    """Errors of one pair of component and weights, fitted to the data, as `FeatureMap.create` with each key draws it.

    Learned weights are as they start. Rows are drawn once for all components and applied as a dense matrix: the
    figures are those of the fast algorithms up to rounding, at a fraction of the compile time.

    Returns:
        `error` (seeds, L), of the output; `error_per_key` (seeds, L), the same with the published stabilizer, which
        takes the largest feature of every key for 1; `kernel_relative_variance` (seeds, L), the mean over the pairs
        of a query and a key that meet of ((estimate − exp(s q·k)) / exp(s q·k))².
    """
    rows = COMPONENTS[component].rows_for(num_features)
    drawn = draw_rows(keys, problem.data.query.shape[-1], rows, weights)
    found = _errors(problem, keys, drawn, component, num_features)
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


@partial(jax.jit, static_argnames=("component", "num_features"))
def _errors(problem: Problem, keys: jax.Array, drawn: DrawnRows, component: str, num_features: int) -> Any:
    data = problem.data

    def estimate(
        key: jax.Array, drawn: DrawnRows, query: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, ...]:
        feature_map = FeatureMap.create(key, query.shape[-1], num_features, component, "gaussian")
        feature_map = dataclasses.replace(feature_map, weights=drawn).calibrate(query, keys)
        (phi_q, scale_q), (phi_k, scale_k) = feature_map.query(query), feature_map.key(keys)
        return jnp.einsum("tnm,snm->nts", phi_q, phi_k), scale_q.T, scale_k.T

    def one(draw: tuple[jax.Array, DrawnRows]) -> dict[str, jax.Array]:
        products, scale_q, scale_k = jax.vmap(estimate, (None, None, 0, 0))(*draw, data.query, data.key)
        products = jnp.where(problem.seen, products, 0)
        scale_k = scale_k[:, :, None, :]
        # Relative to exp(s q·k), so that nothing overflows; a constant factor of all keys of a head cancels.
        ratio = products * jnp.exp(scale_q[..., None] + scale_k - problem.logits)
        square = jnp.where(problem.seen, jnp.square(ratio - 1), 0).sum(axis=(2, 3)) / problem.seen.sum()
        scaled = products * jnp.exp(scale_k - scale_k.max(axis=-1, keepdims=True))
        return {
            "error": _relative_error(_mean(scaled, data.value), problem.target),
            "error_per_key": _relative_error(_mean(products, data.value), problem.target),
            "kernel_relative_variance": square.mean(axis=1),
        }

    # One draw after the other: each works on L·N·T·S numbers, which should stay in cache.
    return jax.lax.map(one, (keys, drawn))
