"""Errors of kernels against float64, in float32 and bfloat16, of this and of other checkouts."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks.measure import rounding
from benchmarks.measure.results import finish, load, new_document, say, write

PLANS = ("accelerator", "cpu")
ROOT = pathlib.Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add("--checkout", type=pathlib.Path, default=ROOT, help="working tree of the package that is measured")
    plans = "blocks and dtypes of products of which platform; products themselves are those of this machine"
    add("--plans", nargs="+", choices=PLANS, default=list(PLANS), help=plans)
    out = "result file; rows of other commits are kept"
    add("--out", type=pathlib.Path, default=results / "rounding.json", help=out)


def run(arguments: argparse.Namespace) -> None:
    """Measures one checkout, each plan in a process of its own.

    Raises:
        ValueError: the checkout is no git working tree, or a kernel fails there.
    """
    commit = _output(["git", "-C", str(arguments.checkout), "rev-parse", "--short=7", "HEAD"]).strip()
    old = load(arguments.out, "rounding")["rows"] if arguments.out.exists() else []
    document = new_document("rounding", rounding.SIZES, [row for row in old if row["commit"] != commit])
    environment = os.environ | {"PYTHONPATH": str(arguments.checkout)}
    for plan in arguments.plans:
        for line in _output([sys.executable, rounding.__file__, plan], env=environment).splitlines():
            document["rows"].append({"commit": commit} | json.loads(line))
            say(line)
        write(document, arguments.out)
    finish(document, arguments.out)


def _output(command: list[str], **options: Any) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if found.returncode:
        raise ValueError(f"--checkout: {' '.join(command)} failed: {found.stderr.strip()[-500:]}")
    return found.stdout
