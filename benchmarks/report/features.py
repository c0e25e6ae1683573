"""Tables of the errors of random features."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import INTERRUPTED, grid, two_digits, versions

REFERENCE = "orf"  # the weights that components are compared on


def section(document: Mapping[str, Any], whole: bool) -> str:
    """What was measured, the components on one kind of weights, and in the whole all pairs."""
    settings, rows = document["settings"], document["rows"]
    data = settings["data"]
    if data == "random":
        data = f"random queries and keys of variance {settings['variance']:g}"
    sizes = (
        f"L {settings['problems']}, T {settings['length']}, N {settings['heads']}, H {settings['head_dim']}, "
        + ("causal" if settings["causal"] else "not causal")
    )
    parts = [
        f"### Error on {data}",
        f"Relative error of the output against exact softmax attention, ||out − exact|| / ||exact|| ({sizes}; "
        f"{settings['seeds']} draws of the features, which are fitted to these data; learned weights as they start). "
        f"Taking the plain mean of the values has error {_cell(document['plain_mean'])}. {versions(document)}",
    ]
    if not document["complete"]:
        parts.append(INTERRUPTED)
    parts += _components([row for row in rows if row["weights"] == REFERENCE])
    if whole:
        parts += _pairs(rows)
    return "\n\n".join(parts)


def table_features(rows: Sequence[Row]) -> int:
    """The M of the table and the heatmap of all pairs: the one nearest to 128."""
    return min({row["num_features"] for row in rows}, key=lambda m: (abs(m - 128), m))


def _components(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    found = {(row["component"], row["num_features"]): row for row in rows}
    counts = sorted({row["num_features"] for row in rows})
    middle = table_features(rows)
    columns = [
        *(f"M {count}" for count in counts),
        f"`per_key`, M {middle}",
        f"variance of the kernel, M {middle}",
    ]
    lines = {}
    for component in dict.fromkeys(row["component"] for row in rows):
        row = found.get((component, middle), {})
        lines[f"`{component}`"] = [
            *(_cell(found.get((component, count), {}).get("error")) for count in counts),
            _cell(row.get("error_per_key")),
            _cell(row.get("kernel_relative_variance")),
        ]
    return [
        f"Components on `{REFERENCE}`, mean ± standard deviation over the draws. `per_key`: with the stabilizer of "
        "the published code. Variance of the kernel: the mean of ((φ·φ − exp(s q·k)) / exp(s q·k))².",
        grid("component", columns, lines),
    ]


def _pairs(rows: Sequence[Row]) -> list[str]:
    num_features = table_features(rows)
    rows = [row for row in rows if row["num_features"] == num_features]
    components, weights = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("component", "weights")
    )
    found = {(row["component"], row["weights"]): two_digits(row["error"]["median"]) for row in rows}
    lines = {
        f"`{family}`": [found.get((component, family), "") for component in components] for family in weights
    }
    return [
        f"All pairs at M {num_features}, median over the draws:",
        grid("weights", [f"`{component}`" for component in components], lines),
    ]


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    if summary["mean"] is None:
        return two_digits(None)
    spread = "" if len(summary["samples"]) == 1 else f" ± {two_digits(summary['std'])}"
    return two_digits(summary["mean"]) + spread
