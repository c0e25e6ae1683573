"""Measure attention, check results against the promised bounds, and turn them into tables and plots.

The options are parsed by argparse, not by the training application's tyro: benchmarks run on GPU machines that have
JAX and Flax but none of the dependencies of training.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from benchmarks.report import check, documents
from benchmarks.suites import attention, compile_time, compiled, features, pods, rounding, sentences, steps

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"

# name -> (help, adds the options, runs)
SUITES: dict[str, tuple[str, Callable[..., None], Callable[..., None]]] = {
    "attention": (
        "time and memory of attention mechanisms, beside their peers",
        attention.add_arguments,
        attention.run,
    ),
    "features": (
        "error of attention by random features, for all components and weights",
        features.add_arguments,
        features.run,
    ),
    "training-step": (
        "time of a training step of the Long Range Arena's published set-up",
        steps.add_training_arguments,
        steps.run_training,
    ),
    "head-step": (
        "time of a fine-tuning step with different heads",
        steps.add_head_arguments,
        steps.run_heads,
    ),
    "sentences": (
        "texts a second of a sentence encoder, beside sentence-transformers",
        sentences.add_arguments,
        sentences.run,
    ),
    "rounding": (
        "errors of kernels against float64, of this and of other checkouts",
        rounding.add_arguments,
        rounding.run,
    ),
    "compile-time": (
        "time to trace and compile the gradient of a layer, beside softmax",
        compile_time.add_arguments,
        compile_time.run,
    ),
    "compile": (
        "HBM bytes, temporaries and compile time for accelerators that are not present",
        compiled.add_arguments,
        compiled.run,
    ),
    "pods": (
        "memory and collectives of whole training jobs on TPU pods that are not present",
        pods.add_arguments,
        pods.run,
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_arguments, _) in SUITES.items():
        formatter = argparse.ArgumentDefaultsHelpFormatter
        add_arguments(commands.add_parser(name, help=text, formatter_class=formatter), RESULTS)
    report = commands.add_parser("report", help="tables in README.md and docs/, plots in docs/figures")
    report.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of result files")
    report.add_argument(
        "--root", type=pathlib.Path, default=ROOT, help="the project whose documents are written"
    )
    judged = commands.add_parser("check", help="the promised ratios; exit status 1 if one is missed")
    judged.add_argument("file", type=pathlib.Path, nargs="+", help="result files")
    memory = commands.add_parser("_memory")  # the fresh process of one memory measurement
    memory.add_argument("request", type=json.loads)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "_memory":
            attention.measure_peak_here(arguments.request)
        elif arguments.command == "report":
            documents.write(arguments.results, arguments.root)
        elif arguments.command == "check":
            return check.run(arguments.file)
        else:
            SUITES[arguments.command][2](arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
