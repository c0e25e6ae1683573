"""`python -m train sweep`: a task of the Long Range Arena with many attentions and seeds.

The attentions are all pairs of --components and --weights, as features:COMPONENT-WEIGHTS:M, and --attentions. Each
run with each seed is an ordinary `lra` run in a process of its own, one after the other, or one a GPU where there are
several. OUT/results.jsonl gets a line for each run that has ended. A sweep that was stopped, or killed, goes on when
the same command is given again: runs with a line are not repeated, one that was under way resumes from its
checkpoint. A run that failed has a line too, and is tried again with --retry-failed. Further attentions and seeds may
be added to a sweep; its task, preset and flags stay.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.errors import UserError
from train.studies.sweep.ledger import Ledger
from train.studies.sweep.runs import SweepRun, devices, run_all
from train.tasks.lra.config import PRESETS, parse

OWN = (
    *("--task", "--preset", "--attention", "--seed", "--seeds", "--out", "--overwrite", "--resume-step"),
    *("--distributed",),
)


def main(argv: Sequence[str]) -> int:
    """Runs what is not finished yet; returns the exit code."""
    import jax

    # This process computes nothing; a GPU that it opened would be missing to its runs.
    jax.config.update("jax_platforms", "cpu")
    args = _parser().parse_args(argv)
    chosen = spellings(args.components, args.weights, args.num_features, args.attentions)
    if not chosen:
        raise UserError("a sweep needs --components and --weights, or --attentions; got none of them.")
    if args.seeds < 1 or args.seed < 0:
        raise UserError(
            f"--seeds must be at least 1 and --seed at least 0; got {args.seeds} and {args.seed}."
        )
    if args.devices is not None and len(set(args.devices)) < len(args.devices):
        raise UserError(f"--devices must differ from each other; got {' '.join(map(str, args.devices))}.")
    own = [word for word in args.rest if word.split("=")[0] in OWN]
    if own:
        raise UserError(f"{own[0]} is the sweep's own; give it before the --, if the sweep has it.")
    sweep = args.out or Path("runs") / f"sweep-{args.task}-{args.preset}"
    runs = [SweepRun(name, seed) for seed in range(args.seed, args.seed + args.seeds) for name in chosen]
    common = ["--task", args.task, "--preset", args.preset, *args.rest]
    configs = [parse(run.flags(sweep, common)) for run in runs]  # a mistake should not show after hours
    ledger = Ledger(sweep, {"task": args.task, "preset": args.preset, "flags": args.rest})
    try:
        again = ("failed",) if args.retry_failed else ()
        records = {run: ledger.get(run.attention, run.seed) for run in runs}
        todo = [run for run, record in records.items() if record is None or record["status"] in again]
        bad = [run for run in runs if run not in todo and (records[run] or {})["status"] == "failed"]
        print(f"{len(runs) - len(todo)} of {len(runs)} runs have ended already; results in {ledger.path}")
        for run in bad:
            print(f"failed before: {run}; --retry-failed tries it again")
        sys.stdout.flush()
        if not todo:
            return int(bool(bad))
        from train.tasks.lra.command import load_data

        load_data(configs[0])  # generated once, not by several at the same time; what is missing shows now
        code = run_all(
            todo,
            ledger,
            sweep=sweep,
            common=common,
            places=devices(args.devices),
            say=lambda line: print(line, flush=True),
        )
        if code in (130, 143):
            print("stopped; the same command goes on", flush=True)
        else:
            print(f"done; python -m train report --sweep {ledger.path}", flush=True)
        return code or int(bool(bad))
    finally:
        ledger.close()


def spellings(
    components: Sequence[str], weights: Sequence[str], num_features: int, others: Sequence[str]
) -> list[str]:
    """All attentions of a sweep, each once.

    Args:
        components: names, or "all".
        weights: names, or "all".
        num_features: M.
        others: spelled out.

    Raises:
        UserError: an unknown name, or components without weights.

    Examples:
        >>> spellings(["oprf"], ["orf", "sorf"], 8, ["softmax"])
        ['softmax', 'features:oprf-orf:8', 'features:oprf-sorf:8']
    """
    from jaxattn import COMPONENTS, WEIGHTS

    if bool(components) != bool(weights):
        raise UserError("--components and --weights belong together; got one of them.")
    if num_features < 1:
        raise UserError(f"--num-features must be at least 1; got {num_features}.")
    for flag, names, known in (("--components", components, COMPONENTS), ("--weights", weights, WEIGHTS)):
        for name in names:
            if name != "all" and name not in known:
                raise UserError(f"{flag} must be of {', '.join(known)}, or all; got {name!r}.")
    every = [
        list(known) if "all" in names else names
        for names, known in ((components, COMPONENTS), (weights, WEIGHTS))
    ]
    pairs = [f"features:{c}-{w}:{num_features}" for c in every[0] for w in every[1]]
    return list(dict.fromkeys([*others, *pairs]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", choices=PRESETS, default="listops", help="which task (default: listops)")
    add(
        "--preset",
        choices=("quick", "paper"),
        default="quick",
        help="size of every run; see lra (default: quick)",
    )
    add(
        "--components",
        nargs="+",
        default=[],
        metavar="C",
        help="component functions, such as oprf posrf; or all",
    )
    add("--weights", nargs="+", default=[], metavar="W", help="weight matrices, such as orf sorf; or all")
    add(
        "--num-features",
        type=int,
        default=128,
        metavar="M",
        help="features a head of the pairs (default: 128)",
    )
    add(
        "--attentions",
        nargs="+",
        default=[],
        metavar="A",
        help="others: softmax tree:64x16 softmax+gate=running",
    )
    add("--seeds", type=int, default=3, help="seeds of every attention (default: 3)")
    add("--seed", type=int, default=0, help="the first of them (default: 0)")
    add("--out", type=Path, help="folder of the sweep (default: runs/sweep-TASK-PRESET)")
    add(
        "--devices",
        type=int,
        nargs="+",
        metavar="N",
        help="GPUs, a process on each (default: all that are visible)",
    )
    add("--retry-failed", action="store_true", help="try runs again that failed")
    add("rest", nargs="*", help="after --: further flags of lra, the same for all runs")
    return parser
