"""Measures how far every pair of component and weights is from softmax attention, into one JSON file."""

import argparse
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report.results import load, say, write

if TYPE_CHECKING:
    from benchmarks.suites.accuracy import Data

KIND = "features"
Pair = tuple[str, str, int]


def run(arguments: argparse.Namespace) -> int:
    """Measures what the result file lacks, and writes it after every pair."""
    from benchmarks.measure.provenance import provenance
    from benchmarks.suites.accuracy import error_of_plain_mean, pose
    from jaxattn.random_features import COMPONENTS, WEIGHTS

    components, weights = arguments.components or list(COMPONENTS), arguments.weights or list(WEIGHTS)
    for name, asked, known in (("component", components, COMPONENTS), ("weights", weights, WEIGHTS)):
        if unknown := [x for x in asked if x not in known]:
            raise ValueError(f"unknown {name} {', '.join(unknown)}; accepted: {', '.join(known)}.")
    data, settings = _data(arguments)
    out = arguments.out or _default_out(arguments)
    document = _start(out, settings, fresh=arguments.fresh)
    document["provenance"] = provenance()
    problem = pose(data, arguments.causal)
    document["plain_mean"] = summary(np.asarray(error_of_plain_mean(problem)))
    done = {_pair(row) for row in document["rows"]}
    todo = [(c, w, m) for c in components for w in weights for m in arguments.num_features]
    for i, pair in enumerate(todo):
        if pair in done:
            continue
        start = time.perf_counter()
        row = measure(problem, *pair, seeds=arguments.seeds)
        document["rows"].append(row)
        median = row["error"]["median"]
        said = "not finite" if median is None else f"{median:.3g}"
        seconds = time.perf_counter() - start
        say(f"{i + 1} of {len(todo)}: {'-'.join(pair[:2])} M {pair[2]}: error {said}, {seconds:.1f} s")
        if i + 1 == len(todo) or todo[i + 1][:2] != pair[:2]:
            write(document, out)
    document["complete"] = True
    write(document, out)
    say(f"wrote {out}")
    return 0


def measure(problem: Any, component: str, weights: str, num_features: int, *, seeds: int) -> dict[str, Any]:
    """The row of one pair; each sample is one draw, with the mean over the problems."""
    import jax

    from benchmarks.suites.accuracy import feature_errors
    from jaxattn.random_features import COMPONENTS

    keys = jax.random.split(jax.random.key(1), seeds)
    found = feature_errors(problem, component, weights, num_features, keys)
    if not COMPONENTS[component].positive:
        del found["error_per_key"]  # the published stabilizer is for positive features
    row: dict[str, Any] = {"component": component, "weights": weights, "num_features": num_features}
    row |= {name: summary(values.mean(axis=1)) for name, values in found.items()}
    return row | {"error_by_problem": [_number(x) for x in np.median(found["error"], axis=0)]}


def summary(samples: Any) -> dict[str, Any]:
    """Samples and what describes them; None where that is not finite (JSON knows no infinity)."""
    with np.errstate(all="ignore"):
        values = np.where(np.isnan(samples), np.inf, samples)
        described = {
            "median": np.median(values),
            "mean": np.mean(values),
            "std": np.std(values, ddof=len(values) > 1),
        }
    return {name: _number(x) for name, x in described.items()} | {"samples": [_number(x) for x in values]}


def _number(x: Any) -> float | None:
    return float(f"{x:.5g}") if np.isfinite(x) else None


def _pair(row: Mapping[str, Any]) -> Pair:
    return row["component"], row["weights"], row["num_features"]


def _data(arguments: argparse.Namespace) -> "tuple[Data, dict[str, Any]]":
    from benchmarks.suites.accuracy import load_data, random_data

    settings: dict[str, Any] = {"seeds": arguments.seeds, "causal": arguments.causal}
    if arguments.qkv is not None:
        data = load_data(arguments.qkv, arguments.length)
        digest = hashlib.sha256(arguments.qkv.read_bytes()).hexdigest()
        settings |= {"data": arguments.qkv.name, "sha256": digest}
    else:
        data = random_data(
            0,
            arguments.problems,
            arguments.length,
            arguments.heads,
            arguments.head_dim,
            arguments.variance,
        )
        settings |= {"data": "random", "variance": arguments.variance}
    sizes = data.query.shape
    return data, settings | dict(zip(("problems", "length", "heads", "head_dim"), sizes, strict=True))


def _default_out(arguments: argparse.Namespace) -> pathlib.Path:
    name = "random" if arguments.qkv is None else arguments.qkv.stem
    return pathlib.Path(__file__).parents[1] / f"results/features_accuracy_{name}.json"


def _start(out: pathlib.Path, settings: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """The file's document with its rows, or an empty one."""
    document: dict[str, Any] = {"benchmark": KIND, "complete": False, "settings": settings, "rows": []}
    if fresh or not out.exists():
        return document
    old = load(out, KIND)
    if old["settings"] != settings:
        raise ValueError(
            f"{out} has other settings, {json.dumps(old['settings'])}; give --fresh or another --out."
        )
    say(f"{out} has {len(old['rows'])} rows already")
    earlier = [*old.get("earlier_provenance", []), old["provenance"]]
    return document | {"earlier_provenance": earlier, "rows": old["rows"]}
