"""Tables between the markers of README.md and docs/*.md, and plots in docs/figures, from all result files."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.measure.results import KINDS, load
from benchmarks.report import (
    attention,
    compile_time,
    compiled,
    features,
    pods,
    roofline,
    rounding,
    sentences,
    steps,
)
from benchmarks.report.markdown import command, replace_between_markers
from benchmarks.report.plots import curves, heatmap

Document = Mapping[str, Any]
Plot = Callable[[Document, pathlib.Path, str], list[str]]


class Place(NamedTuple):
    """One pair of markers and what is written between them, a section for each result file.

    `section(document, whole)` is the whole of it on a page of docs, and a summary in the README.
    """

    name: str
    pattern: str  # of the result files
    kind: str
    section: Callable[[Document, bool], str]
    plot: Plot | None = None

    @property
    def markers(self) -> tuple[str, str]:
        """Start and end."""
        group = self.name.partition(":")[0]
        return f"<!-- {self.name} -->", f"<!-- /{group} -->"


PLACES = (
    Place("benchmarks:attention", "attention*.json", "attention", attention.gates_section, curves),
    Place("results:features-speed", "features_*.json", "attention", attention.features_section, curves),
    Place("results:tree-speed", "tree_*.json", "attention", attention.trees_section, curves),
    Place("results:features-accuracy", "features_*.json", "features", features.section, heatmap),
    Place(
        "results:training-step",
        "training_step*.json",
        "training-step",
        lambda x, _: steps.training_section(x),
    ),
    Place("results:compiled", "compiled*.json", "compile", lambda x, _: compiled.section(x)),
    Place("results:roofline", "roofline*.json", "compile", lambda x, _: roofline.section(x)),
    Place("results:pods", "pods*.json", "pods", lambda x, _: pods.section(x)),
    Place("results:rounding", "rounding*.json", "rounding", lambda x, _: rounding.section(x)),
    Place("results:compile-time", "compile_time*.json", "compile-time", lambda x, _: compile_time.section(x)),
    Place("results:sentences", "sentences*.json", "sentences", lambda x, _: sentences.section(x)),
    Place("results:head-step", "head_step*.json", "head-step", lambda x, _: steps.head_section(x)),
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
    """The text of a page, with pictures, and of the README."""
    page, readme = [], []
    for name, document in documents.items():
        whole, summary = place.section(document, True), place.section(document, False)
        if place.plot:
            files = place.plot(document, figures, name)
            images = [f"![{pathlib.Path(file).stem}](figures/{file})" for file in files]
            whole = "\n\n".join([whole, *images, command(document)])
            summary = f"{summary}\n\n{command(document)}"
        page.append(whole)
        readme.append(summary)
    return "\n\n".join(page), "\n\n".join(readme)
