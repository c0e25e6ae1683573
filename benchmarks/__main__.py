"""The command line: measure, check against the bounds, turn results into tables and plots."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks.cases import PASSES, PEERS

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
        help="spelled as for training: softmax, lags:8, softmax+gate=running, ...; ega-X is short for softmax+gate=X",
    )
    add(
        "--implementations",
        nargs="+",
        default=["xla", "blockwise", "jax"],
        help=f"of jaxattn.dot_product_attention (xla, blockwise, cudnn, ...), and the peers {', '.join(PEERS)}",
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
        "--out", type=pathlib.Path, default=ROOT / "benchmarks/results/attention.json", help="the result file"
    )

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command == "_memory":
        from benchmarks.memory import measure_here

        measure_here(arguments.request)
        return 0
    try:
        if arguments.command == "attention":
            from benchmarks import attention

            return attention.run(arguments)
        if arguments.command == "report":
            from benchmarks import report

            return report.run(arguments.results, arguments.root)
        from benchmarks import check

        return check.run(arguments.file)
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
