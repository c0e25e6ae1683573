"""Result files into Markdown tables and plots."""

import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.report import accuracy_tables, attention_tables, speed_tables, training_step_tables
from benchmarks.report.heatmap import heatmap
from benchmarks.report.plots import plot
from benchmarks.report.results import KINDS, load
from benchmarks.report.tables import replace_between_markers
from benchmarks.suites import head_step
from benchmarks.suites.cases import PASSES

START, END = "<!-- benchmarks:attention -->", "<!-- /benchmarks -->"
SPEED, ACCURACY = "<!-- results:features-speed -->", "<!-- results:features-accuracy -->"
TREES = "<!-- results:tree-speed -->"
STEPS = "<!-- results:training-step -->"
HEADS = "<!-- results:head-step -->"
RESULTS_END = "<!-- /results -->"
EMPTY_PAGE = f"""# Benchmarks

Written by `python -m benchmarks report` from the files in `benchmarks/results`;
`python -m benchmarks attention --help` says how to repeat them.

{START}
{END}
"""

Document = Mapping[str, Any]


def run(results: pathlib.Path, root: pathlib.Path) -> int:
    """Writes tables between the markers of README.md and the pages of docs, and plots to docs/figures."""
    # Other kinds of result may lie in the same folder.
    attention = {path.stem: load(path) for path in sorted(results.glob("attention*.json"))}
    features = {path.stem: load(path, *KINDS) for path in sorted(results.glob("features_*.json"))}
    speed = {name: x for name, x in features.items() if x["benchmark"] == "attention"}
    accuracy = {name: x for name, x in features.items() if x["benchmark"] == "features" and x["rows"]}
    trees = {path.stem: load(path) for path in sorted(results.glob("tree_*.json"))}
    steps = {path.stem: load(path, "training-step") for path in sorted(results.glob("training_step*.json"))}
    heads = {path.stem: load(path, "head-step") for path in sorted(results.glob("head_step*.json"))}
    if not any((attention, speed, accuracy, trees, steps, heads)):
        raise FileNotFoundError(
            f"no attention*.json, features_*.json, tree_*.json, training_step*.json or head_step*.json in {results}: "
            "run `python -m benchmarks attention` first."
        )
    figures = root / "docs/figures"
    figures.mkdir(parents=True, exist_ok=True)
    docs = root / "docs/benchmarks.md"
    if not docs.exists():
        docs.write_text(EMPTY_PAGE, encoding="utf-8")

    # (marker, its end, sections of a page, sections of the README)
    texts: list[tuple[str, str, list[str], list[str]]] = []
    for start, end, documents, module in (
        (START, END, attention, attention_tables),
        (SPEED, RESULTS_END, speed, speed_tables),
        (TREES, RESULTS_END, trees, speed_tables),
    ):
        page = [module.section(x, PASSES, _images(plot(x, figures, name))) for name, x in documents.items()]
        texts.append((start, end, page, [module.section(x, ("both",), []) for x in documents.values()]))
    for start, documents, make in (
        (STEPS, steps, training_step_tables.section),
        (HEADS, heads, head_step.section),
    ):
        page = [make(x) for x in documents.values()]
        texts.append((start, RESULTS_END, page, page))
    page = [
        accuracy_tables.section(x, _images([heatmap(x, figures, name)]), whole=True)
        for name, x in accuracy.items()
    ]
    summary = [accuracy_tables.section(x, [], whole=False) for x in accuracy.values()]
    texts.append((ACCURACY, RESULTS_END, page, summary))

    readme = root / "README.md"
    for path in (readme, *sorted((root / "docs").glob("*.md"))):
        filled = [
            start
            for start, end, page, summary in texts
            if page
            and replace_between_markers(path, start, end, "\n\n".join(summary if path == readme else page))
        ]
        if filled:
            print(f"wrote {path}: {', '.join(filled)}")
        elif path in (readme, docs):
            print(f"left {path} alone: it has no {START} ... {END}")
    return 0


def _images(names: list[str]) -> list[str]:
    return [f"![{pathlib.Path(name).stem}](figures/{name})" for name in names]
