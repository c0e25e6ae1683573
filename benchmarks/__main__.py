"""The command line: measure, check against the bounds, turn results into tables and plots."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.suites.cases import PASSES, PEERS
from benchmarks.suites.tree_cases import OURS

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    measure = commands.add_parser(
        "attention",
        help="time and memory of attention mechanisms, beside their peers",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = measure.add_argument
    add("--lengths", type=int, nargs="+", default=[512, 1024, 2048], help="tokens T")
    add("--batch", type=int, default=2, help="sequences B")
    add("--heads", type=int, default=8, help="query heads N")
    add("--kv-heads", type=int, default=None, help="key and value heads K; as many as --heads if not given")
    add("--head-dim", type=int, nargs="+", default=[64], help="width H of a head")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of queries, keys and values",
    )
    add("--causal", action=argparse.BooleanOptionalAction, default=True, help="causal attention")
    add(
        "--mechanisms",
        nargs="+",
        default=["softmax", "softmax+gate=running", "softmax+gate=none"],
        help="spelled as for training: softmax, lags:8, features:oprf-orf:128, tree:64x16, softmax+gate=running, "
        "...; ega-X is short for softmax+gate=X",
    )
    add(
        "--implementations",
        nargs="+",
        default=["xla", "blockwise", "jax"],
        help="of jaxattn.dot_product_attention (xla, blockwise, cudnn, ...), linear for features, "
        + ", ".join(OURS)
        + " for trees, and the peers "
        + ", ".join(PEERS),
    )
    add(
        "--passes",
        nargs="+",
        choices=PASSES,
        default=list(PASSES),
        help="what to time; both: forward + backward",
    )
    add("--repeats", type=int, default=10, help="rounds through all cases of one size and pass")
    add(
        "--max-seconds-per-case",
        type=float,
        default=None,
        help="what all rounds of one case may take together; slow cases then take part in fewer, one at least",
    )
    add(
        "--memory-passes",
        nargs="*",
        choices=PASSES,
        default=["forward", "both"],
        help="whose peak memory to measure, each case in a process of its own; give none to skip",
    )
    add(
        "--memory-limit-gib",
        type=float,
        default=None,
        help="cases that need more are not run; what is free if not given",
    )
    add(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have malloc (glibc) keep freed memory while times are taken: no cliff where arrays exceed 32 MiB",
    )
    add(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks/results/attention.json", help="the result file"
    )

    _add_features(commands)
    _add_training_step(commands)
    _add_head_step(commands)
    report = commands.add_parser(
        "report", help="tables in README.md and docs/benchmarks.md, plots in docs/figures"
    )
    report.add_argument(
        "--results", type=pathlib.Path, default=ROOT / "benchmarks/results", help="folder of results"
    )
    report.add_argument(
        "--root", type=pathlib.Path, default=ROOT, help="the project whose documents are written"
    )

    check = commands.add_parser(
        "check", help="the ratios that the project promises; exit status 1 if one is missed"
    )
    check.add_argument("file", type=pathlib.Path, nargs="+", help="result files")

    memory = commands.add_parser("_memory")  # the fresh process of one memory measurement
    memory.add_argument("request")
    return top


def _add_features(commands: Any) -> None:
    features = commands.add_parser(
        "features",
        help="error of attention by random features, for all components and weights",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = features.add_argument
    add("--components", nargs="+", default=None, help="component functions; all if not given")
    add("--weights", nargs="+", default=None, help="weight families; all if not given")
    add("--num-features", type=int, nargs="+", default=[64, 128, 256], help="features M")
    add("--seeds", type=int, default=5, help="draws of random numbers a pair")
    add("--length", type=int, default=256, help="tokens T; of a file, the first so many")
    add("--causal", action=argparse.BooleanOptionalAction, default=False, help="causal attention")
    add("--problems", type=int, default=4, help="sets of random queries, keys and values")
    add("--heads", type=int, default=4, help="random heads N")
    add("--head-dim", type=int, default=32, help="width H of a random head")
    add("--variance", type=float, default=0.25, help="of the coordinates of random queries and keys")
    add(
        "--qkv",
        type=pathlib.Path,
        default=None,
        help=".npz file with q, k, v, each (T, N, H) or (L, T, N, H)",
    )
    add(
        "--out",
        type=pathlib.Path,
        default=None,
        help="result file; results/features_accuracy_*.json if not given",
    )
    add("--fresh", action="store_true", help="measures everything anew; else what the result file lacks")


def _add_training_step(commands: Any) -> None:
    step = commands.add_parser(
        "training-step",
        help="time of a training step of the Long Range Arena's published set-up",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = step.add_argument
    add("--task", default="text", help="of the Long Range Arena")
    add("--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="tokens T")
    add("--batch", type=int, default=2, help="sequences B")
    add(
        "--attentions",
        nargs="+",
        default=["softmax", "features:aderf-orf:128", "features:oprf-orf:128", "tree:64x16"],
        help="spelled as for training; ratios are to softmax",
    )
    add("--repeats", type=int, default=5, help="rounds through all attentions")
    add(
        "--out",
        type=pathlib.Path,
        default=ROOT / "benchmarks/results/training_step.json",
        help="the result file",
    )


def _add_head_step(commands: Any) -> None:
    step = commands.add_parser(
        "head-step",
        help="time of a fine-tuning step with different heads",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = step.add_argument
    add(
        "--heads",
        nargs="+",
        default=["mean", "cls", "no-convolution", "no-attention", "kernel-3", "inceptive"],
        help="variants of `python -m train finetune-study`; ratios are to the first",
    )
    add("--length", type=int, default=32, help="tokens a text")
    add("--batch", type=int, default=32, help="texts")
    add("--repeats", type=int, default=5, help="rounds through all heads")
    add(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks/results/head_step.json", help="the result file"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command == "_memory":
        from benchmarks.measure.memory import measure_here

        measure_here(arguments.request)
        return 0
    try:
        if arguments.command == "attention":
            from benchmarks.suites import attention

            return attention.run(arguments)
        if arguments.command == "features":
            from benchmarks.suites import features

            return features.run(arguments)
        if arguments.command == "training-step":
            from benchmarks.suites import training_step

            return training_step.run(arguments)
        if arguments.command == "head-step":
            from benchmarks.suites import head_step

            return head_step.run(arguments)
        if arguments.command == "report":
            from benchmarks.report import report

            return report.run(arguments.results, arguments.root)
        from benchmarks.report import check

        return check.run(arguments.file)
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
