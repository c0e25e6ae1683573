"""The measurement of random features against softmax attention on given queries, keys and values."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxattn.core.call import check_scale
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.diagnosis.arguments import check_num_features, check_pairs, check_tensors
from jaxattn.random_features.diagnosis.measure import Data, draw_weights, measure, prepare_data
from jaxattn.random_features.diagnosis.result import Diagnosis
from jaxattn.random_features.diagnosis.verdict import DiagnosisRow, judge, rank, usable_limit
from jaxattn.random_features.feature_map import is_usable
from jaxattn.random_features.moments import Moments, sum_second

PAIRS = ("oprf-orf", "posrf-orf", "oprf-mm", "saderf-orf", "aderf-orf", "oprf-simrf")


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
    r"""Measures on your own tensors whether random features come close to softmax attention, and with how many.

    For every pair, M and draw of the random numbers, with K̂_ij = φ_q(x_i)·φ_k(y_j) and A softmax attention,

    $$ error = \frac{\lVert out - exact \rVert}{\lVert exact \rVert}, \qquad
       variance = \mathbb{E}_i \sum_j A_{ij} \Bigl( \frac{\hat K_{ij}}{\exp(x_i \cdot y_j)} - 1 \Bigr)^2. $$

    A row is usable if its error is at most `target` and at most 0.8 times that of averaging the values (or 0.1 if
    that is more: where attention is nearly uniform, averaging need not be beaten). The verdict on a pair is

    - "usable" if one measured M is;
    - "needs M >= …" if the last error is below 1 and an extrapolation by M^-rate reaches the limit at `max_features`
      or before. The rate is fitted over the measured M, must be at least 1/4, and is capped at 1/2, that of a Monte
      Carlo estimate, which is also assumed with a single M;
    - "needs qk-norm" if the pair is usable at the largest M once every query and key is divided by its own root mean
      square and multiplied by one of `norms`, measured against softmax attention of the same;
    - "not usable" otherwise, and always for pairs that `FeatureMap.create` refuses.

    Components with statistics are calibrated on all tokens of these tensors, also for causal attention; a causal
    model itself must take its statistics from elsewhere. Memory is that of a few arrays (N, Q, S) with
    Q = min(T, max_tokens), independent of B and `num_draws`.

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
        max_tokens: if T is more, errors are measured at that many evenly spaced queries of every sequence, against
            all keys.
        max_features: the largest M that a verdict may ask for.
        norms: root mean squares to normalise queries and keys to, tried from the largest down for pairs that are
            otherwise not usable; empty to skip.

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
    names, sizes = check_pairs(pairs), check_num_features(num_features)
    counts = {"num_draws": num_draws, "max_tokens": max_tokens, "max_features": max_features}
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive number; got {target}.")
    if any(not norm > 0 for norm in norms):
        raise ValueError(f"norms must be positive numbers; got {tuple(norms)}.")
    tensors = check_tensors(query, key, value, key_bias, token_mask)
    batch, length, heads, width = tensors.query.shape
    scale = check_scale(scale, width)
    if scale < 0:
        raise ValueError(f"scale must be at least 0: features take its root; got {scale}.")
    position = np.linspace(0, length - 1, min(length, max_tokens)).round().astype(int)
    keys = jax.random.split(jax.random.key(seed), num_draws)

    def given(rms: float | None) -> tuple[Data, Moments, float]:
        """What to measure on, its statistics and the error of averaging, with queries and keys normalised to rms."""
        size = 0.0 if rms is None else float(rms)
        data, moments, averaging, exact = prepare_data(tensors, jnp.asarray(position), scale, size, is_causal)
        if exact == 0:
            raise ValueError(
                "value must give an output other than 0 at some query; got an output of 0 everywhere."
            )
        return data, moments, float(averaging / exact) ** 0.5

    def row(
        pair: tuple[str, str], size: int, data: Data, moments: Moments, averaging: float, rms: float | None
    ) -> DiagnosisRow:
        component, family = pair
        drawn = draw_weights(keys, width, COMPONENTS[component].rows_for(size), family)
        sums = measure(data, moments, keys, drawn, component, family, size, is_causal)
        wrong, exact, weighted, plain = (np.asarray(s, np.float64) for s in sums)
        error = np.sqrt(wrong.sum(axis=1) / exact.sum())
        by_head = np.sqrt(wrong / np.where(exact > 0, exact, np.inf)).mean(axis=0)
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
            limit=usable_limit(target, averaging),
        )

    data, moments, averaging = given(None)
    rows = {pair: [row(pair, size, data, moments, averaging, None) for size in sizes] for pair in names}
    verdicts = {pair: judge(pair, rows[pair], max_features) for pair in names}
    for rms in sorted(norms, reverse=True):
        hopeless = [pair for pair in names if verdicts[pair].verdict == "not usable" and is_usable(*pair)]
        if not hopeless:
            break
        normalized = given(rms)
        for pair in hopeless:
            rows[pair].append(row(pair, sizes[-1], *normalized, rms))
            if rows[pair][-1].usable:
                verdicts[pair] = dataclasses.replace(
                    verdicts[pair], verdict="needs qk-norm", num_features=sizes[-1], rms=rms
                )
    best = min(names, key=lambda pair: rank(verdicts[pair], rows[pair]))
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
        shape=(batch, length, tensors.key.shape[1], heads, width),
        num_queries=len(position),
        is_causal=is_causal,
    )
