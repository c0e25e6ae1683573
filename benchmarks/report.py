"""Result files into Markdown tables and plots."""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.cases import PASSES
from benchmarks.results import load

TITLES = {"forward": "Forward", "backward": "Backward", "both": "Forward + backward"}
START, END = "<!-- benchmarks:attention -->", "<!-- /benchmarks -->"
EMPTY_PAGE = f"""# Benchmarks

Written by `python -m benchmarks report` from the files in `benchmarks/results`;
`python -m benchmarks attention --help` says how to repeat them.

{START}
{END}
"""

Row = Mapping[str, Any]


def run(results: pathlib.Path, root: pathlib.Path) -> int:
    """Writes the tables between the markers of README.md and docs/benchmarks.md, and the plots to docs/figures."""
    # Other kinds of result may lie in the same folder.
    documents = {path.stem: load(path) for path in sorted(results.glob("attention*.json"))}
    if not documents:
        raise FileNotFoundError(
            f"no attention*.json in {results}: run `python -m benchmarks attention` first."
        )
    figures = root / "docs/figures"
    figures.mkdir(parents=True, exist_ok=True)
    page, summary = [], []
    for name, document in documents.items():
        drawn = plot(document, figures, name)
        page.append(_section(document, PASSES, [f"figures/{figure}" for figure in drawn]))
        summary.append(_section(document, ("both",), []))
    docs = root / "docs/benchmarks.md"
    if not docs.exists():
        docs.write_text(EMPTY_PAGE, encoding="utf-8")
    for path, sections in ((docs, page), (root / "README.md", summary)):
        if replace_between_markers(path, "\n\n".join(sections)):
            print(f"wrote {path}")
        else:
            print(f"left {path} alone: it has no {START} ... {END}")
    return 0


def replace_between_markers(path: pathlib.Path, text: str) -> bool:
    """Puts `text` between the markers of a file; False if it has none."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    pattern = re.compile(f"({re.escape(START)}\n).*?({re.escape(END)})", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old)
    if count:
        path.write_text(new, encoding="utf-8")
    return count > 0


def _section(document: Mapping[str, Any], passes: Sequence[str], figures: Sequence[str]) -> str:
    where, rows = document["provenance"], document["rows"]
    versions = where["versions"]
    machine = f"{where['cpu']}, {where['cores']} cores" if where["platform"] == "cpu" else where["device"]
    parts = [
        f"### {machine}",
        f"jax {versions['jax']}, Python {versions['python']}, commit `{where['commit'][:10]}`, "
        f"{where['date'][:10]}. Medians of {document['settings']['repeats']} rounds in which all cases take turns; "
        "in brackets the ratio to plain softmax attention of the same implementation, round by round.",
    ]
    if not document["complete"]:
        parts.append("**This run was interrupted; what it had measured is shown.**")
    for head_dim in sorted({row["head_dim"] for row in rows}):
        chosen = [row for row in rows if row["head_dim"] == head_dim]
        size = _size(chosen[0])
        for direction in passes:
            timed = [row for row in chosen if row["direction"] == direction]
            if any("median_s" in row for row in timed):
                parts += [f"{TITLES[direction]}, ms ({size}):", _table(timed, _time_cell)]
        for direction in passes:
            weighed = [row for row in chosen if row["direction"] == direction]
            if any("peak_bytes" in row for row in weighed):
                parts += [
                    f"{TITLES[direction]}, measured peak memory beyond the inputs, MiB ({size}):",
                    _table(weighed, _memory_cell),
                ]
    parts += [f"![{pathlib.Path(figure).stem}]({figure})" for figure in figures]
    parts.append(f"Command: `{where['command']}`")
    return "\n\n".join(parts)


def _size(row: Row) -> str:
    heads = f"N {row['heads']}" + (f", K {row['kv_heads']}" if row["kv_heads"] != row["heads"] else "")
    mask = "causal" if row["causal"] else "not causal"
    return f"B {row['batch']}, {heads}, H {row['head_dim']}, {row['dtype']}, {mask}"


def _table(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    lengths = sorted({row["length"] for row in rows})
    found = {(_name(row), row["length"]): row for row in rows}
    lines = ["| mechanism, implementation | " + " | ".join(f"T {length}" for length in lengths) + " |"]
    lines.append("|---|" + "---:|" * len(lengths))
    for name in dict.fromkeys(_name(row) for row in rows):
        cells = [cell(found[name, length]) if (name, length) in found else "" for length in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"`{row['mechanism']}`, {row['implementation']}"


def _time_cell(row: Row) -> str:
    if "median_s" not in row:
        return _status(row)
    ratio = row["ratios"].get(f"softmax/{row['implementation']}")
    return _figures(row["median_s"] * 1e3) + (
        "" if ratio is None or row["mechanism"] == "softmax" else f" ({ratio:.2f})"
    )


def _memory_cell(row: Row) -> str:
    return _figures(row["peak_bytes"] / 2**20) if "peak_bytes" in row else _status(row)


def _status(row: Row) -> str:
    return "" if row.get("status") == "ok" else row.get("status", "not measured").replace("_", " ")


def _figures(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def plot(document: Mapping[str, Any], folder: pathlib.Path, name: str) -> list[str]:
    """Draws time and memory over T for forward + backward (or what there is); returns the file names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    rows = [row for row in document["rows"] if row.get("status") == "ok"]
    for quantity, value, unit in (
        ("time", lambda row: row["median_s"] * 1e3, "median time, ms"),
        ("memory", lambda row: row["peak_bytes"] / 2**20, "peak memory, MiB"),
    ):
        key = "median_s" if quantity == "time" else "peak_bytes"
        panels = _panels(row for row in rows if row.get(key))
        if not panels:
            continue
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False)
        for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
            for line in dict.fromkeys((row["mechanism"], row["implementation"]) for row in members):
                points = sorted(
                    (row["length"], value(row))
                    for row in members
                    if (row["mechanism"], row["implementation"]) == line
                )
                style = "--" if line[0] == "softmax" else "-"
                axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=", ".join(line))
            axis.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel=unit, title=title)
            lengths = sorted({row["length"] for row in members})
            axis.set_xticks(lengths, [str(length) for length in lengths])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
        figure.tight_layout()
        drawn.append(f"{name}_{quantity}.png")
        figure.savefig(folder / drawn[-1], dpi=110)
        plt.close(figure)
    return drawn


def _panels(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by head width and pass, in the order of the passes."""
    rows = list(rows)
    panels: dict[str, list[Row]] = {}
    for head_dim in sorted({row["head_dim"] for row in rows}):
        for direction in PASSES:
            members = [row for row in rows if row["head_dim"] == head_dim and row["direction"] == direction]
            if members:
                panels[f"{TITLES[direction]}, H {head_dim}"] = members
    return panels
