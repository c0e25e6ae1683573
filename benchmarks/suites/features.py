"""Error of attention by random features, for every pair of component and weights."""

import argparse
import hashlib
import itertools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.measure.results import finish, load, new_document, say, write
from benchmarks.suites.accuracy import (
    Data,
    Problem,
    error_of_plain_mean,
    feature_errors,
    load_data,
    pose,
    random_data,
)
from jaxattn import COMPONENTS, WEIGHTS


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add("--components", nargs="+", default=list(COMPONENTS), help="component functions")
    add("--weights", nargs="+", default=list(WEIGHTS), help="weight families")
    add("--num-features", type=int, nargs="+", default=[64, 128, 256], help="features M")
    add("--seeds", type=int, default=5, help="draws of random numbers for each pair")
    add("--length", type=int, default=256, help="tokens T; the first so many of a file")
    add("--causal", action=argparse.BooleanOptionalAction, default=False, help="causal attention")
    add("--problems", type=int, default=4, help="sets of random queries, keys and values")
    add("--heads", type=int, default=4, help="random heads N")
    add("--head-dim", type=int, default=32, help="width H of a random head")
    add("--variance", type=float, default=0.25, help="of the coordinates of random queries and keys")
    qkv = ".npz file with q, k, v, each (T, N, H) or (L, T, N, H)"
    add("--qkv", type=pathlib.Path, default=None, help=qkv)
    out = "result file; features_accuracy_random.json or features_accuracy_FILE.json if not given"
    add("--out", type=pathlib.Path, default=None, help=out)
    add("--fresh", action="store_true", help="measure everything anew; else only what the result file lacks")
    parser.set_defaults(results=results)


def run(arguments: argparse.Namespace) -> None:
    """Measures what the result file lacks, and writes it after every pair."""
    for name, asked, known in (
        ("component", arguments.components, COMPONENTS),
        ("weights", arguments.weights, WEIGHTS),
    ):
        if unknown := [x for x in asked if x not in known]:
            raise ValueError(f"unknown {name} {', '.join(unknown)}; accepted: {', '.join(known)}.")
    data, settings = _data(arguments)
    name = "random" if arguments.qkv is None else arguments.qkv.stem
    out = arguments.out or arguments.results / f"features_accuracy_{name}.json"
    document = _start(out, settings, fresh=arguments.fresh)
    problem = pose(data, arguments.causal)
    document["plain_mean"] = summary(np.asarray(error_of_plain_mean(problem)))
    done = {(row["component"], row["weights"], row["num_features"]) for row in document["rows"]}
    for pair in itertools.product(arguments.components, arguments.weights):
        for num_features in arguments.num_features:
            if (*pair, num_features) in done:
                continue
            start = time.perf_counter()
            row = measure(problem, *pair, num_features, seeds=arguments.seeds)
            document["rows"].append(row)
            seconds = time.perf_counter() - start
            say(f"{'-'.join(pair)} M {num_features}: error {row['error']['median']}, {seconds:.1f} s")
        write(document, out)
    finish(document, out)


def measure(
    problem: Problem, component: str, weights: str, num_features: int, *, seeds: int
) -> dict[str, Any]:
    """The row of one pair; each sample is one draw, with the mean over the problems."""
    keys = jax.random.split(jax.random.key(1), seeds)
    found = feature_errors(problem, component, weights, num_features, keys)
    if not COMPONENTS[component].positive:
        del found["error_per_key"]  # the published stabilizer is for positive features
    row: dict[str, Any] = {"component": component, "weights": weights, "num_features": num_features}
    row |= {name: summary(values.mean(axis=1)) for name, values in found.items()}
    return row | {"error_by_problem": [_number(x) for x in np.median(found["error"], axis=0)]}


def summary(samples: Any) -> dict[str, Any]:
    """The samples and their median, mean and standard deviation; None where not finite (JSON has no infinity)."""
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


def _data(arguments: argparse.Namespace) -> tuple[Data, dict[str, Any]]:
    settings: dict[str, Any] = {"seeds": arguments.seeds, "causal": arguments.causal}
    if arguments.qkv is not None:
        data = load_data(arguments.qkv, arguments.length)
        digest = hashlib.sha256(arguments.qkv.read_bytes()).hexdigest()
        settings |= {"data": arguments.qkv.name, "sha256": digest}
    else:
        sizes = (arguments.problems, arguments.length, arguments.heads, arguments.head_dim)
        data = random_data(0, *sizes, arguments.variance)
        settings |= {"data": "random", "variance": arguments.variance}
    return data, settings | dict(
        zip(("problems", "length", "heads", "head_dim"), data.query.shape, strict=True)
    )


def _start(out: pathlib.Path, settings: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """An empty document, or one with the rows of the file."""
    document = new_document("features", settings)
    if fresh or not out.exists():
        return document
    old = load(out, "features")
    if old["settings"] != settings:
        raise ValueError(
            f"{out} has other settings, {json.dumps(old['settings'])}; give --fresh or another --out."
        )
    say(f"{out} has {len(old['rows'])} rows already")
    earlier = [*old.get("earlier_provenance", []), old["provenance"]]
    return document | {"earlier_provenance": earlier, "rows": old["rows"]}
