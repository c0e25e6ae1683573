"""The result of `diagnose`: measurements and verdicts, as a table and as a plot."""

import dataclasses
import pathlib
from typing import Any

from jaxattn.random_features.diagnosis.verdict import DiagnosisRow, PairVerdict
from jaxattn.random_features.feature_map import is_usable


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
        sum_square: mean of |x + y|²; the relative variance of PosRF grows with its exponential.
        num_draws: draws of the random numbers behind every mean.
        shape: (B, T, S, N, H) of the tensors.
        num_queries: queries of every sequence that the errors were measured at.
        is_causal: whether query i attended to keys j <= i only.
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
        return report(self)

    def rows_of(self, pair: PairVerdict, rms: float | None = None) -> list[DiagnosisRow]:
        """The rows of a pair with a given normalisation."""
        name = (pair.component, pair.weights, rms)
        return [row for row in self.rows if (row.component, row.weights, row.rms) == name]

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
            rows = self.rows_of(pair)
            sizes, errors, spread = zip(*((r.num_features, r.error, r.error_std) for r in rows), strict=True)
            axis.errorbar(sizes, errors, spread, marker="o", capsize=2, label=pair.name)
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


def report(found: Diagnosis) -> str:
    """The tensors, a table of all pairs and the recommendation, as text."""
    return "\n".join([*_head(found), "", *_table(found), "", *_conclusion(found)])


def _head(found: Diagnosis) -> list[str]:
    batch, queries, keys, heads, width = found.shape
    measured = "all" if found.num_queries == queries else f"{found.num_queries} evenly spaced ones"
    causal = "causal" if found.is_causal else "not causal"
    return [
        f"{batch} sequence(s) of {queries} queries ({measured} measured) and {keys} keys, {heads} heads of width "
        f"{width}, {causal}; mean |x + y|² = {found.sum_square:.3g}",
        "Relative error of the output against softmax attention: mean ± standard deviation over "
        f"{found.num_draws} draws.",
        f"Averaging the values has {found.averaging_error:.3g}; usable is {found.rows[0].limit:.3g} or less.",
    ]


def _table(found: Diagnosis) -> list[str]:
    sizes = [row.num_features for row in found.rows_of(found.pairs[0])]
    columns = [f"M = {size}" for size in sizes]
    cells = [["pair", *columns, "worst head", "rel. variance", "(plain)", "rate", "verdict"]]
    for pair in found.pairs:
        rows = found.rows_of(pair)
        last, verdict = rows[-1], pair.verdict
        if verdict == "usable":
            verdict += f", M = {pair.num_features}"
        elif pair.rms is not None:
            verdict += f", rms <= {pair.rms:g}, M = {pair.num_features}"
        cells.append(
            [
                pair.name,
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
    notes = [
        f"{pair.name} never estimates softmax attention; FeatureMap.create needs allow_unusable=True."
        for pair in found.pairs
        if not is_usable(pair.component, pair.weights)
    ]
    note = f"Worst head and relative variance are at M = {sizes[-1]}; the error falls like M^-rate."
    return [lines[0], "-" * max(map(len, lines)), *lines[1:], note, *notes]


def _conclusion(found: Diagnosis) -> list[str]:
    if found.recommended is None:
        return [f"Verdict: {found.verdict}. Every pair is too far from softmax attention on these tensors."]
    pair = next(p for p in found.pairs if (p.component, p.weights) == found.recommended)
    lines = [f"Verdict: {found.verdict}: {pair.name} with M = {found.num_features}."]
    if found.verdict.startswith("needs M"):
        lines.append("That M is extrapolated from the errors above, not measured.")
    rows = [row for row in found.rows_of(pair, pair.rms) if row.num_features == found.num_features]
    if pair.rms is not None:
        lines.append(
            f"With queries and keys normalised to a root mean square of {pair.rms:g} the error is "
            f"{rows[0].error:.3g}, against softmax of the normalised ones (averaging: "
            f"{rows[0].averaging_error:.3g}). The model must be trained with this normalisation."
        )
    elif rows and found.averaging_error <= rows[0].error:
        lines.append("Averaging the values is as close: attention is nearly uniform here.")
    if found.num_features is not None and found.num_features >= found.shape[2]:
        lines.append(
            f"There are only {found.shape[2]} keys: exact softmax attention costs less at this length."
        )
    return lines
