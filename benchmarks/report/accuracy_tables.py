"""The tables of the errors of random features."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import tables
from benchmarks.report.tables import Row

REFERENCE = "orf"  # the weights that components are compared on


def section(document: Mapping[str, Any], images: Sequence[str], *, whole: bool) -> str:
    """What was measured, the components on one kind of weights, and (if `whole`) all pairs."""
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
        f"Taking the plain mean of the values has error {_cell(document['plain_mean'])}. {tables.versions(document)}",
    ]
    if not document["complete"]:
        parts.append("**This run was interrupted; what it had measured is shown.**")
    parts += _components(rows)
    if whole:
        parts += _pairs(rows, drawn_features(rows))
    return "\n\n".join([*parts, *images, f"Command: `{document['provenance']['command']}`"])


def drawn_features(rows: Sequence[Row]) -> int:
    """The M of the table and the heatmap of all pairs: the one nearest to 128."""
    return min({row["num_features"] for row in rows}, key=lambda m: (abs(m - 128), m))


def _components(rows: Sequence[Row]) -> list[str]:
    on_reference = [row for row in rows if row["weights"] == REFERENCE]
    found = {(row["component"], row["num_features"]): row for row in on_reference}
    counts = sorted({row["num_features"] for row in on_reference})
    if not counts:
        return []
    middle = drawn_features(on_reference)
    columns = [f"M {count}" for count in counts] + [
        f"`per_key`, M {middle}",
        f"variance of the kernel, M {middle}",
    ]
    lines = {}
    for component in dict.fromkeys(row["component"] for row in on_reference):
        row = found.get((component, middle), {})
        lines[f"`{component}`"] = [
            *(_cell(found.get((component, count), {}).get("error")) for count in counts),
            _cell(row.get("error_per_key")),
            _cell(row.get("kernel_relative_variance")),
        ]
    return [
        f"Components on `{REFERENCE}`, mean ± standard deviation over the draws. `per_key`: with the stabilizer of "
        "the published code. Variance of the kernel: the mean of ((φ·φ − exp(s q·k)) / exp(s q·k))².",
        tables.grid("component", columns, lines),
    ]


def _pairs(rows: Sequence[Row], num_features: int) -> list[str]:
    chosen = [row for row in rows if row["num_features"] == num_features]
    components, weights = (
        list(dict.fromkeys(row[name] for row in chosen)) for name in ("component", "weights")
    )
    found = {(row["component"], row["weights"]): row["error"] for row in chosen}
    lines = {
        f"`{family}`": [
            digits(found[component, family]["median"]) if (component, family) in found else ""
            for component in components
        ]
        for family in weights
    }
    return [
        f"All pairs at M {num_features}, median over the draws:",
        tables.grid("weights", [f"`{component}`" for component in components], lines),
    ]


def _cell(described: Mapping[str, Any] | None) -> str:
    if described is None:
        return ""
    if described["mean"] is None:
        return digits(None)
    spread = "" if len(described["samples"]) == 1 else f" ± {digits(described['std'])}"
    return digits(described["mean"]) + spread


def digits(value: float | None) -> str:
    """Two significant digits."""
    if value is None:
        return "not finite"
    return f"{value:.1e}" if value >= 1e4 else f"{value:.0f}" if value >= 10 else f"{value:#.2g}"
