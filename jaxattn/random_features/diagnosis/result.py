"""What `diagnose` returns: measurements, verdicts, a table and a plot."""

import dataclasses
import pathlib
from typing import Any


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
