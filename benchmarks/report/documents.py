"""Tables between the markers of README.md and docs/*.md, and plots in docs/figures, from all result files."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.measure.results import KINDS, load
from benchmarks.report import attention, features, steps
from benchmarks.report.markdown import command, replace_between_markers
from benchmarks.report.plots import curves, heatmap
from benchmarks.suites.cases import PASSES

Document = Mapping[str, Any]


class Place(NamedTuple):
    """One pair of markers and what is written between them, a section for each result file."""

    name: str
    pattern: str  # of the result files
    kind: str
    page: Callable[[Document], str]  # the section on a page of docs
    readme: Callable[[Document], str]
    plot: Callable[[Document, pathlib.Path, str], list[str]] | None = None

    @property
    def markers(self) -> tuple[str, str]:
        """Start and end."""
        group = self.name.partition(":")[0]
        return f"<!-- {self.name} -->", f"<!-- /{group} -->"


_features = functools.partial(attention.linear_section, "Random features")
_trees = functools.partial(attention.linear_section, "Attention over trees")
PLACES = (
    Place(
        "benchmarks:attention",
        "attention*.json",
        "attention",
        lambda x: attention.gates_section(x, PASSES),
        lambda x: attention.gates_section(x, ["both"]),
        curves,
    ),
    Place(
        "results:features-speed",
        "features_*.json",
        "attention",
        lambda x: _features(x, PASSES),
        lambda x: _features(x, ["both"]),
        curves,
    ),
    Place(
        "results:tree-speed",
        "tree_*.json",
        "attention",
        lambda x: _trees(x, PASSES),
        lambda x: _trees(x, ["both"]),
        curves,
    ),
    Place(
        "results:features-accuracy",
        "features_*.json",
        "features",
        lambda x: features.section(x, all_pairs=True),
        lambda x: features.section(x, all_pairs=False),
        heatmap,
    ),
    Place(
        "results:training-step",
        "training_step*.json",
        "training-step",
        steps.training_section,
        steps.training_section,
    ),
    Place("results:head-step", "head_step*.json", "head-step", steps.head_section, steps.head_section),
)
MAIN = PLACES[0].markers
EMPTY_PAGE = f"""# Benchmarks

Written by `python -m benchmarks report` from the files in `benchmarks/results`;
`python -m benchmarks attention --help` says how to repeat them.

{MAIN[0]}
{MAIN[1]}
"""


def write(results: pathlib.Path, root: pathlib.Path) -> None:
    """Writes all tables and plots.

    Args:
        results: folder of result files; files of other names may lie beside them.
        root: the project whose documents are written.

    Raises:
        FileNotFoundError: there is no result file.
        ValueError: a file of a result's name is not one.
    """
    figures, main_page, readme = root / "docs/figures", root / "docs/benchmarks.md", root / "README.md"
    found = {place: _documents(place, results) for place in PLACES}
    if not any(found.values()):
        patterns = ", ".join(dict.fromkeys(place.pattern for place in PLACES))
        raise FileNotFoundError(f"no {patterns} in {results}: run `python -m benchmarks attention` first.")
    figures.mkdir(parents=True, exist_ok=True)
    if not main_page.exists():
        main_page.write_text(EMPTY_PAGE, encoding="utf-8")
    texts = {place: _texts(place, documents, figures) for place, documents in found.items() if documents}
    for path in (readme, *sorted((root / "docs").glob("*.md"))):
        filled = [
            place.markers[0]
            for place, (page, summary) in texts.items()
            if replace_between_markers(path, *place.markers, summary if path == readme else page)
        ]
        if filled:
            print(f"wrote {path}: {', '.join(filled)}")
        elif path in (readme, main_page):
            print(f"left {path} alone: it has no {MAIN[0]} ... {MAIN[1]}")


def _documents(place: Place, results: pathlib.Path) -> dict[str, Document]:
    """The results of one kind that have rows, by the names of their files."""
    # features_*.json are results of two suites.
    loaded = {path.stem: load(path, *KINDS) for path in sorted(results.glob(place.pattern))}
    return {name: x for name, x in loaded.items() if x["benchmark"] == place.kind and x["rows"]}


def _texts(place: Place, documents: Mapping[str, Document], figures: pathlib.Path) -> tuple[str, str]:
    """What is written on a page, with pictures, and in the README."""
    if place.plot is None:
        page, readme = ([make(x) for x in documents.values()] for make in (place.page, place.readme))
    else:
        page, readme = [], []
        for name, document in documents.items():
            files = place.plot(document, figures, name)
            images = [f"![{pathlib.Path(file).stem}](figures/{file})" for file in files]
            page.append("\n\n".join([place.page(document), *images, command(document)]))
            readme.append("\n\n".join([place.readme(document), command(document)]))
    return "\n\n".join(page), "\n\n".join(readme)
