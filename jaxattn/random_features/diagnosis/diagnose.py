"""Whether random features can stand in for softmax attention on given queries, keys and values."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxattn.core.arguments import check_qkv, check_scale
from jaxattn.core.checks import check_broadcastable, check_choice, check_dtype, check_shape
from jaxattn.core.padding import padding_key_bias
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.diagnosis.measure import Data, draw_weights, measure, prepare_data
from jaxattn.random_features.diagnosis.result import Diagnosis, DiagnosisRow, PairVerdict
from jaxattn.random_features.moments import Moments, sum_second
from jaxattn.random_features.weights import WEIGHTS

PAIRS = ("oprf-orf", "posrf-orf", "oprf-mm", "saderf-orf", "aderf-orf", "oprf-simrf")

# Features need not beat averaging by more than this: below it they are close to softmax whatever averaging does.
_CLOSE = 0.1
_BELOW_AVERAGING = 0.8
# The slowest fall of the error, M^-rate, that is extrapolated; a Monte Carlo estimate falls with 1/2.
_SLOWEST_RATE = 0.25


def diagnose(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    *,
    pairs: Sequence[str | tuple[str, str]] = PAIRS,
    num_features: Sequence[int] = (64, 128, 256),
    scale: float | None = None,
    is_causal: bool = False,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    token_mask: Bool[Array, "*B S"] | None = None,
    target: float = 0.3,
    num_draws: int = 8,
    seed: int = 0,
    max_tokens: int = 512,
    max_features: int = 4096,
    norms: Sequence[float] = (1.0, 0.5),
) -> Diagnosis:
    """Measures on your own tensors whether random features come close to softmax attention, and with which M.

    For every pair, M and draw of the random numbers, with K̂_ij = φ_q(x_i)·φ_k(y_j) and A softmax attention,

        error = ‖out − exact‖ / ‖exact‖,      relative variance = E_i Σ_j A_ij (K̂_ij / exp(x_i·y_j) − 1)².

    A row is usable if its error is at most `target` and at most 0.8 times that of averaging the values (or 0.1, if
    that is more: where attention is nearly uniform, averaging is hard to beat and need not be). The verdict on a
    pair is

    - "usable" if one measured M is;
    - "needs M >= …" if the errors came below 1, fall like M^-rate with a rate of at least 1/4, and so reach the limit
      at `max_features` or before. The rate is fitted over the measured M; 1/2, that of a Monte Carlo estimate, is
      the most that is believed, and is assumed with a single M. It is an extrapolation;
    - "needs qk-norm" if the pair is usable at the largest M once every query and key is divided by its own root mean
      square and multiplied by one of `norms`, measured against softmax attention of the same;
    - "not usable" otherwise.

    Components with statistics are calibrated on these very tensors, all tokens of them. To diagnose that is fair
    also where the attention is causal; a causal model itself must have its statistics from elsewhere.

    Memory is that of a few arrays (N, Q, S) for Q = min(T, max_tokens), whatever B and `num_draws` are.

    Args:
        query: (B, T, N, H) or (T, N, H), as they come to the attention, after rotary positions if there are any.
        key: (B, S, K, H) or (S, K, H); K divides N.
        value: (B, S, K, V) or (S, K, V).
        pairs: what to try, each "component-weights" or (component, weights).
        num_features: every M to try.
        scale: factor on q·k, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i only, both counted from the start.
        key_bias: (B or 1, S, N or 1), natural log units, added to the score of key j.
        token_mask: (B, S), True at keys that count; with T = S the queries at the others do not count either.
        target: relative output error that is good enough.
        num_draws: draws of the random numbers. Draw d of every pair and M is made from
            `jax.random.split(jax.random.key(seed), num_draws)[d]`.
        seed: of the draws.
        max_tokens: if T is more, errors are measured at that many evenly spaced queries of every sequence. All keys
            take part always.
        max_features: the largest M that a verdict may ask for.
        norms: root mean squares to normalise queries and keys to, tried for pairs that nothing else helps, from the
            largest on; empty to leave that out.

    Returns:
        A `Diagnosis`: rows, verdicts, a recommended pair and M.

    Raises:
        ValueError: an argument has a wrong shape, dtype, name or value, or the tensors hold NaN or infinity where
            they count.

    Examples:
        >>> import jax, jaxattn
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 64, 2, 16)) / 2
        >>> diagnosis = jaxattn.diagnose(q, k, v, pairs=["oprf-orf"], num_features=(128,), num_draws=4)
        >>> diagnosis.verdict, diagnosis.recommended
        ('usable', ('oprf', 'orf'))

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3, for the relative variance.
    """
    check_qkv(query, key, value)
    names = _checked_pairs(pairs)
    sizes = _checked_sizes(num_features)
    for name, number in (
        ("num_draws", num_draws),
        ("max_tokens", max_tokens),
        ("max_features", max_features),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive number; got {target}.")
    if any(not norm > 0 for norm in norms):
        raise ValueError(f"norms must be positive numbers; got {tuple(norms)}.")
    scale = check_scale(scale, query.shape[-1])
    if scale < 0:
        raise ValueError(f"scale must be at least 0: features take its root; got {scale}.")
    query, key, value, bias, query_mask, key_mask = _prepared(query, key, value, key_bias, token_mask)
    batch, length, heads, width = query.shape
    count = min(length, max_tokens)
    position = np.linspace(0, length - 1, count).round().astype(int)
    keys = jax.random.split(jax.random.key(seed), num_draws)

    def given(rms: float | None) -> tuple[Data, Moments, float]:
        size = 0.0 if rms is None else float(rms)
        tensors = (query, key, value, bias, query_mask, key_mask, jnp.asarray(position))
        data, moments, averaging, exact = prepare_data(tensors, scale, size, is_causal)
        if exact == 0:
            raise ValueError(
                "value must give an output other than 0 at some query; got an output of 0 everywhere."
            )
        return data, moments, float(averaging / exact) ** 0.5

    def row(
        pair: tuple[str, str], size: int, data: Data, moments: Moments, averaging: float, rms: float | None
    ):
        component, family = pair
        drawn = draw_weights(keys, width, COMPONENTS[component].rows_for(size), family)
        sums = measure(data, moments, keys, drawn, component, family, size, is_causal)
        wrong, exact, weighted, plain = (np.asarray(s, np.float64) for s in sums)
        error = np.sqrt(wrong.sum(axis=1) / exact.sum())
        by_head = np.sqrt(wrong / np.where(exact > 0, exact, np.inf)).mean(axis=0)
        limit = min(target, max(_BELOW_AVERAGING * averaging, _CLOSE))
        return DiagnosisRow(
            *pair,
            num_features=size,
            rms=rms,
            error=float(error.mean()),
            error_std=float(error.std()),
            error_by_head=tuple(map(float, by_head)),
            relative_variance=float(weighted.mean()),
            plain_relative_variance=float(plain.mean()),
            averaging_error=averaging,
            limit=limit,
        )

    data, moments, averaging = given(None)
    rows = {pair: [row(pair, size, data, moments, averaging, None) for size in sizes] for pair in names}
    verdicts = {pair: _verdict(pair, rows[pair], max_features) for pair in names}
    for rms in sorted(norms, reverse=True):
        hopeless = [pair for pair in names if verdicts[pair].verdict == "not usable"]
        if not hopeless:
            break
        normalized = given(rms)
        for pair in hopeless:
            rows[pair].append(row(pair, sizes[-1], *normalized, rms))
            if rows[pair][-1].usable:
                verdicts[pair] = dataclasses.replace(
                    verdicts[pair], verdict="needs qk-norm", num_features=sizes[-1], rms=rms
                )
    best = min(names, key=lambda pair: _rank(verdicts[pair], rows[pair]))
    found = verdicts[best].num_features is not None
    return Diagnosis(
        rows=tuple(r for pair in names for r in rows[pair]),
        pairs=tuple(verdicts[pair] for pair in names),
        verdict=verdicts[best].verdict,
        recommended=best if found else None,
        num_features=verdicts[best].num_features,
        averaging_error=averaging,
        sum_square=float(jnp.trace(jax.vmap(sum_second)(moments), axis1=-2, axis2=-1).mean()),
        num_draws=num_draws,
        shape=(batch, length, key.shape[1], heads, width),
        num_queries=count,
        is_causal=is_causal,
    )


def _checked_pairs(pairs: Sequence[str | tuple[str, str]]) -> list[tuple[str, str]]:
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


def _checked_sizes(num_features: Sequence[int]) -> list[int]:
    if not num_features or any(size < 1 for size in num_features):
        raise ValueError(
            f"num_features must hold at least one number, all at least 1; got {tuple(num_features)}."
        )
    return sorted(set(num_features))


def _prepared(query: Array, key: Array, value: Array, key_bias: Array | None, token_mask: Array | None):
    """Arrays batched, in float32, 0 where they do not count; the key bias (B, S, N); masks (B, T) and (B, S)."""
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
        query, key, value, bias, token_mask = jax.tree.map(
            lambda x: x[None], (query, key, value, bias, token_mask)
        )
    dtype = jnp.result_type(jnp.float32, query)
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
    return query, key, value, bias, query_mask, key_mask


def _verdict(pair: tuple[str, str], rows: Sequence[DiagnosisRow], max_features: int) -> PairVerdict:
    rate = None
    sizes, errors = np.array([r.num_features for r in rows]), np.array([r.error for r in rows])
    if len(rows) > 1:
        fits = np.isfinite(errors).all() and (errors > 0).all()
        rate = float(-np.polyfit(np.log(sizes), np.log(errors), 1)[0]) if fits else 0.0
    for row in rows:
        if row.usable and row.num_features <= max_features:
            return PairVerdict(*pair, "usable", row.num_features, None, rate)
    believed = 0.5 if rate is None else min(rate, 0.5)
    # How an error of 1 or more will fall is not known: M^-1/2 holds where it is small.
    if believed >= _SLOWEST_RATE and errors[-1] < 1:
        with np.errstate(over="ignore"):
            needed = sizes[-1] * (errors[-1] / rows[-1].limit) ** (1 / believed)
        if needed <= max_features:
            needed = min(8 * math.ceil(needed / 8), max_features)
            return PairVerdict(*pair, f"needs M >= {needed}", needed, None, rate)
    return PairVerdict(*pair, "not usable", None, None, rate)


def _rank(verdict: PairVerdict, rows: Sequence[DiagnosisRow]) -> tuple[int, float, int, float]:
    """Smaller is better: the kind of verdict, then the weaker normalisation, fewer features, the smaller error."""
    kind = ("usable", "needs M", "needs qk-norm", "not usable").index(verdict.verdict.split(" >=")[0])
    error = min(row.error for row in rows if row.rms == verdict.rms)
    return (kind, -(verdict.rms or 0.0), verdict.num_features or 0, error)
