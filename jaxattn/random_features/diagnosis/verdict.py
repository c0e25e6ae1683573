"""One measurement of a pair of component and weights, and what several of them say about the pair."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxattn.random_features.feature_map import is_usable

# An error this small is usable even where averaging the values is hardly worse.
_CLOSE = 0.1
_BELOW_AVERAGING = 0.8
# The slowest decay of the error, M^-rate, that is extrapolated; that of a Monte Carlo estimate is 1/2.
_SLOWEST_RATE = 0.25
_KINDS = ("usable", "needs M", "needs qk-norm", "not usable")


@dataclasses.dataclass(frozen=True)
class DiagnosisRow:
    """The measurement of one pair with one number of features.

    Attributes:
        component: name of the component function.
        weights: name of the weight family.
        num_features: M.
        rms: None for queries and keys as they were given, else the root mean square they were normalised to.
        error: ‖out − exact‖ / ‖exact‖ over all measured queries, mean over draws.
        error_std: its standard deviation over draws.
        error_by_head: mean over draws of the same for each query head.
        relative_variance: E[(φ_q·φ_k / exp(x·y) − 1)²], every key weighted by its attention weight.
        plain_relative_variance: the same with all pairs of query and key weighted alike; ratios are capped at e^40.
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

    @property
    def name(self) -> str:
        """component-weights."""
        return f"{self.component}-{self.weights}"


def usable_limit(target: float, averaging_error: float) -> float:
    """The largest usable error: the target, and clearly less than averaging unless it is close to softmax anyway."""
    return min(target, max(_BELOW_AVERAGING * averaging_error, _CLOSE))


def judge(pair: tuple[str, str], rows: Sequence[DiagnosisRow], max_features: int) -> PairVerdict:
    """The verdict on a pair from its rows at ascending M, without normalisation."""
    rate = None
    sizes, errors = np.array([r.num_features for r in rows]), np.array([r.error for r in rows])
    if len(rows) > 1:
        fits = np.isfinite(errors).all() and (errors > 0).all()
        rate = float(-np.polyfit(np.log(sizes), np.log(errors), 1)[0]) if fits else 0.0
    if not is_usable(*pair):
        return PairVerdict(*pair, "not usable", None, None, rate)
    for row in rows:
        if row.usable and row.num_features <= max_features:
            return PairVerdict(*pair, "usable", row.num_features, None, rate)
    believed = 0.5 if rate is None else min(rate, 0.5)
    # Errors of 1 or more do not decay like M^-1/2 yet.
    if believed >= _SLOWEST_RATE and errors[-1] < 1:
        with np.errstate(over="ignore"):
            needed = sizes[-1] * (errors[-1] / rows[-1].limit) ** (1 / believed)
        if needed <= max_features:
            needed = min(8 * math.ceil(needed / 8), max_features)
            return PairVerdict(*pair, f"needs M >= {needed}", needed, None, rate)
    return PairVerdict(*pair, "not usable", None, None, rate)


def rank(verdict: PairVerdict, rows: Sequence[DiagnosisRow]) -> tuple[int, float, int, float]:
    """Smaller is better: the kind of verdict, then the weaker normalisation, fewer features, the smaller error."""
    kind = _KINDS.index(verdict.verdict.split(" >=")[0])
    error = min(row.error for row in rows if row.rms == verdict.rms)
    return (kind, -(verdict.rms or 0.0), verdict.num_features or 0, error)
