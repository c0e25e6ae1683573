"""Whether random features can stand in for softmax attention on given queries, keys and values."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxattn._checks import check_broadcastable, check_choice, check_dtype, check_shape
from jaxattn.features.components import COMPONENTS
from jaxattn.features.feature_map import FeatureMap
from jaxattn.features.moments import Moments, sum_second
from jaxattn.features.weights import WEIGHTS
from jaxattn.features.weights.base import Weights
from jaxattn.kernels._arguments import check_qkv, check_scale
from jaxattn.kernels.padding import padding_key_bias

PAIRS = ("oprf-orf", "posrf-orf", "oprf-mm", "saderf-orf", "aderf-orf", "oprf-simrf")

# Features need not beat averaging by more than this: below it they are close to softmax whatever averaging does.
_CLOSE = 0.1
_BELOW_AVERAGING = 0.8
# The slowest fall of the error, M^-rate, that is extrapolated; a Monte Carlo estimate falls with 1/2.
_SLOWEST_RATE = 0.25


@dataclasses.dataclass(frozen=True)
class DiagnosisRow:
    """One pair with one number of features, measured.

    Attributes:
        component: name of the component function.
        weights: name of the weight family.
        num_features: M.
        rms: None for queries and keys as they were given, else the root mean square they were normalised to.
        error: ‖out − exact‖ / ‖exact‖ over all measured queries, mean over draws.
        error_std: its standard deviation over draws.
        error_by_head: mean over draws of the same for each query head.
        relative_variance: E[(φ_q·φ_k / exp(x·y) − 1)²], every key weighted by its attention weight.
        plain_relative_variance: the same with all pairs of query and key weighted alike. Ratios above e^40 count
            as e^40.
        averaging_error: the error of plain averaging: every allowed key weighted alike but for its key bias.
        limit: the largest error at which this row counts as usable.
    """

    component: str
    weights: str
    num_features: int
    rms: float | None
    error: float
    error_std: float
    error_by_head: tuple[float, ...]
    relative_variance: float
    plain_relative_variance: float
    averaging_error: float
    limit: float

    @property
    def usable(self) -> bool:
        """Whether the error is at most the limit."""
        return self.error <= self.limit


@dataclasses.dataclass(frozen=True)
class PairVerdict:
    """What the rows of one pair say.

    Attributes:
        component: name of the component function.
        weights: name of the weight family.
        verdict: "usable", "needs M >= …", "needs qk-norm" or "not usable".
        num_features: the smallest usable M; an extrapolation with "needs M >= …", None if not usable.
        rms: with "needs qk-norm", the largest root mean square of queries and keys at which the pair was usable.
        rate: the error falls like M^-rate over the measured M; None with a single M.
    """

    component: str
    weights: str
    verdict: str
    num_features: int | None
    rms: float | None
    rate: float | None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`; `print` it for a table, `plot` it for a picture.

    Attributes:
        rows: every measurement.
        pairs: the verdict on every pair, in the order asked for.
        verdict: the best of these: "usable", "needs M >= …", "needs qk-norm" or "not usable".
        recommended: (component, weights) of the pair with that verdict that needs the fewest features, then has the
            smallest error; None if no pair is usable.
        num_features: M for the recommended pair.
        averaging_error: the error of plain averaging of the values (causal: of those so far).
        sum_square: mean of |x + y|², whose exponential the relative variance of PosRF grows with.
        num_draws: draws of the random numbers behind every mean.
        shape: (B, T, S, N, H) of the tensors.
        num_queries: queries of every sequence that the errors were measured at.
        is_causal: whether query i met keys j <= i only.
    """

    rows: tuple[DiagnosisRow, ...]
    pairs: tuple[PairVerdict, ...]
    verdict: str
    recommended: tuple[str, str] | None
    num_features: int | None
    averaging_error: float
    sum_square: float
    num_draws: int
    shape: tuple[int, int, int, int, int]
    num_queries: int
    is_causal: bool

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *self._table(), "", *self._conclusion()])

    def plot(self, path: str | pathlib.Path | None = None) -> Any:
        """Draws the error of every pair over M, with averaging and the limit as lines.

        Args:
            path: a file to write, its format by its suffix.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            # The object interface needs no display and leaves no global state behind.
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib, or jaxattn[train]") from error
        figure = Figure(figsize=(5.5, 3.8), layout="constrained")
        axis = figure.subplots()
        for pair in self.pairs:
            rows = self._of(pair)
            sizes, errors, spread = zip(*((r.num_features, r.error, r.error_std) for r in rows), strict=True)
            axis.errorbar(
                sizes, errors, spread, marker="o", capsize=2, label=f"{pair.component}-{pair.weights}"
            )
        axis.axhline(self.averaging_error, color="grey", linestyle="--", label="averaging the values")
        axis.axhline(self.rows[0].limit, color="black", linestyle=":", label="usable below")
        axis.set(xscale="log", yscale="log", xlabel="features M", ylabel="relative output error")
        ticks = sorted({row.num_features for row in self.rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize="small")
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure

    def _of(self, pair: PairVerdict, rms: float | None = None) -> list[DiagnosisRow]:
        name = (pair.component, pair.weights, rms)
        return [row for row in self.rows if (row.component, row.weights, row.rms) == name]

    def _head(self) -> list[str]:
        batch, queries, keys, heads, width = self.shape
        measured = "all" if self.num_queries == queries else f"{self.num_queries} evenly spaced ones"
        return [
            f"{batch} sequence(s) of {queries} queries ({measured} measured) and {keys} keys, {heads} heads of width "
            f"{width}, {'causal' if self.is_causal else 'not causal'}; mean |x + y|² = {self.sum_square:.3g}",
            "Relative error of the output against softmax attention: mean ± standard deviation over "
            f"{self.num_draws} draws.",
            f"Averaging the values has {self.averaging_error:.3g}; usable is {self.rows[0].limit:.3g} or less.",
        ]

    def _table(self) -> list[str]:
        sizes = [row.num_features for row in self._of(self.pairs[0])]
        cells = [
            [
                "pair",
                *(f"M = {m}" for m in sizes),
                "worst head",
                "rel. variance",
                "(plain)",
                "rate",
                "verdict",
            ]
        ]
        for pair in self.pairs:
            rows = self._of(pair)
            last = rows[-1]
            verdict = pair.verdict
            if verdict == "usable":
                verdict += f", M = {pair.num_features}"
            elif pair.rms is not None:
                verdict += f", rms <= {pair.rms:g}, M = {pair.num_features}"
            cells.append(
                [
                    f"{pair.component}-{pair.weights}",
                    *(f"{row.error:.3g} ± {row.error_std:.2g}" for row in rows),
                    f"{max(last.error_by_head):.3g}",
                    f"{last.relative_variance:.3g}",
                    f"{last.plain_relative_variance:.3g}",
                    "-" if pair.rate is None else f"{pair.rate:.2f}",
                    verdict,
                ]
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        note = f"Worst head and relative variance are at M = {sizes[-1]}; the error falls like M^-rate."
        return [lines[0], "-" * max(map(len, lines)), *lines[1:], note]

    def _conclusion(self) -> list[str]:
        if self.recommended is None:
            return [
                f"Verdict: {self.verdict}. Every pair is too far from softmax attention on these tensors."
            ]
        name = "-".join(self.recommended)
        pair = next(p for p in self.pairs if (p.component, p.weights) == self.recommended)
        lines = [f"Verdict: {self.verdict}: {name} with M = {self.num_features}."]
        if self.verdict.startswith("needs M"):
            lines.append("That M is extrapolated from the errors above, not measured.")
        if pair.rms is not None:
            row = next(r for r in self._of(pair, pair.rms) if r.num_features == self.num_features)
            lines.append(
                f"With queries and keys normalised to a root mean square of {pair.rms:g} the error is "
                f"{row.error:.3g}, against softmax of the normalised ones (averaging: {row.averaging_error:.3g}). "
                "A model has to be trained so."
            )
        else:
            reached = [row.error for row in self._of(pair) if row.num_features == self.num_features]
            if reached and self.averaging_error <= reached[0]:
                lines.append("Averaging the values is as close: attention is nearly uniform here.")
        if self.num_features is not None and self.num_features >= self.shape[2]:
            lines.append(
                f"There are only {self.shape[2]} keys: exact softmax attention costs less at this length."
            )
        return lines


class _Data(NamedTuple):
    """x (B, Q, N, H), y (B, S, K, H), v (B, S, K, V), key_bias (B, S, N), valid (B, Q), position (Q,).

    x and y hold the root of the scale; Q are the measured queries.
    """

    x: Array
    y: Array
    v: Array
    key_bias: Array
    valid: Array
    position: Array


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
    mask: Bool[Array, "*B S"] | None = None,
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
        mask: (B, S), True at keys that count; with T = S the queries at the others do not count either.
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

    Example:
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
    query, key, value, bias, query_mask, key_mask = _prepared(query, key, value, key_bias, mask)
    batch, length, heads, width = query.shape
    count = min(length, max_tokens)
    position = np.linspace(0, length - 1, count).round().astype(int)
    keys = jax.random.split(jax.random.key(seed), num_draws)

    def given(rms: float | None) -> tuple[_Data, Moments, float]:
        size = 0.0 if rms is None else float(rms)
        tensors = (query, key, value, bias, query_mask, key_mask, jnp.asarray(position))
        data, moments, averaging, exact = _given(tensors, scale, size, is_causal)
        if exact == 0:
            raise ValueError(
                "value must give an output other than 0 at some query; got an output of 0 everywhere."
            )
        return data, moments, float(averaging / exact) ** 0.5

    def row(
        pair: tuple[str, str], size: int, data: _Data, moments: Moments, averaging: float, rms: float | None
    ):
        component, family = pair
        drawn = _draw(keys, width, COMPONENTS[component].rows_for(size), family)
        sums = _measure(data, moments, keys, drawn, component, family, size, is_causal)
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


def _prepared(query: Array, key: Array, value: Array, key_bias: Array | None, mask: Array | None):
    """Arrays batched, in float32, 0 where they do not count; the key bias (B, S, N); masks (B, T) and (B, S)."""
    batched = query.ndim == 4
    if mask is not None:
        check_dtype("mask", mask, jnp.bool_, "boolean, True where a token counts")
        check_shape("mask", mask, key.shape[:-2], "(B, S)" if batched else "(S,)")
    if key_bias is not None:
        check_dtype("key_bias", key_bias, jnp.floating, "floating point")
        layout = "(B, S, N)" if batched else "(S, N)"
        check_broadcastable("key_bias", key_bias, (*key.shape[:-2], query.shape[-2]), layout)
    bias = padding_key_bias(mask, key_bias)
    if not batched:
        query, key, value, bias, mask = jax.tree.map(lambda x: x[None], (query, key, value, bias, mask))
    dtype = jnp.result_type(jnp.float32, query)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    (batch, queries, heads), length = query.shape[:3], key.shape[1]
    bias = jnp.zeros((), dtype) if bias is None else bias.astype(dtype)
    bias = jnp.broadcast_to(bias, (batch, length, heads))
    key_mask = (bias > -jnp.inf).any(axis=-1)
    query_mask = jnp.ones((batch, queries), bool)
    if mask is not None and queries == length:
        query_mask = mask
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


@partial(jax.jit, static_argnums=3)
def _given(
    tensors: tuple[Array, ...], scale: Array | float, rms: Array | float, is_causal: bool
) -> tuple[_Data, Moments, Array, Array]:
    """What to measure on, its statistics, and sums of squares over all measured queries: of averaging minus exact,
    and of exact. Queries and keys are normalised unless `rms` is 0.
    """
    query, key, value, bias, query_mask, key_mask, position = tensors

    def sized(x: Array) -> Array:
        square = jnp.square(x).mean(axis=-1, keepdims=True)
        factor = jnp.where(rms == 0, 1, rms * jax.lax.rsqrt(jnp.maximum(square, 1e-12)))
        return (x * factor * jnp.sqrt(scale)).astype(x.dtype)

    x, y = sized(query), sized(key)
    data = _Data(x[:, position], y, value, bias, query_mask[:, position], position)

    def one(sequence: _Data) -> tuple[Array, Array]:
        allowed, log_prior, _, exact, _ = _exact(sequence, is_causal)
        uniform = jnp.where(allowed, jnp.exp(log_prior), 0)
        wrong = _attend(uniform, sequence.v) - exact
        return _sum_of_squares(wrong, sequence).sum(), _sum_of_squares(exact, sequence).sum()

    averaging, exact = jax.lax.map(one, _sequences(data))
    return data, Moments.of(x, y, query_mask, key_mask), averaging.sum(), exact.sum()


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(keys: Array, head_dim: int, num_rows: int, weights: str) -> Weights:
    """The weights of all draws: apart from `_measure`, because components share them and compiling them is slow."""
    return jax.lax.map(lambda key: FeatureMap.create(key, head_dim, num_rows, "posrf", weights).weights, keys)


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _measure(
    data: _Data,
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
        made = FeatureMap.create(key, weights.head_dim, num_features, component, family)
        made = dataclasses.replace(made, weights=weights)
        return made.with_moments(moments) if made.component.calibrates else made

    maps = jax.lax.map(draw, (keys, drawn))

    def one(sequence: _Data) -> tuple[Array, ...]:
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


def _sequences(data: _Data) -> _Data:
    """The data with a batch axis on every array, to be mapped over."""
    return data._replace(position=jnp.broadcast_to(data.position, data.valid.shape))


def _exact(s: _Data, is_causal: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Of one sequence: allowed pairs, the log of their weight but for the score, scores, output and attention.

    All but the output (Q, N, V) are (K, G, Q, S) or broadcast to it.
    """
    groups = s.y.shape[1]
    x = s.x.reshape(s.x.shape[0], groups, -1, s.x.shape[-1])
    scores = jnp.einsum("tkgh,skh->kgts", x, s.y)
    log_prior = s.key_bias.T.reshape(groups, -1, 1, s.key_bias.shape[0])
    # A bias common to all keys changes nothing, so it may be taken off.
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


def _sum_of_squares(x: Array, sequence: _Data) -> Array:
    """(N,) over the measured queries that count and the width of the values."""
    return jnp.where(sequence.valid[:, None, None], jnp.square(x), 0).sum(axis=(0, 2))
