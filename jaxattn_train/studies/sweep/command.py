"""`jaxattn-train sweep`: a task of the Long Range Arena with many attentions and seeds."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse, program, split_rest
from jaxattn_train.errors import UserError
from jaxattn_train.studies.sweep.ledger import Ledger
from jaxattn_train.studies.sweep.runs import SweepRun, devices, run_all
from jaxattn_train.tasks.lra.config import Task
from jaxattn_train.tasks.lra.config import parse as parse_lra

OWN = (
    *("--task", "--preset", "--attention", "--seed", "--seeds", "--out", "--overwrite", "--resume-step"),
    *("--distributed",),
)


@dataclasses.dataclass(frozen=True)
class SweepOptions(Options, at_least={"seeds": 1, "seed": 0, "num_features": 1}):
    """Trains on a task of the Long Range Arena with many attentions and seeds.

    The attentions are all pairs of --components and --weights, as features:COMPONENT-WEIGHTS:M, and --attentions.
    Each is an ordinary run of lra with each seed in a process of its own, one after the other, or one on each of
    several GPUs. Flags of lra after -- hold for all runs.

    OUT/results.jsonl gets a line for each run that has ended. The same command again continues a sweep that was
    stopped or killed: runs with a line are not repeated, an unfinished one resumes from its checkpoint. A failed run
    has a line too, and is repeated with --retry-failed. Attentions and seeds may be added to a sweep; its task,
    preset and flags stay.
    """

    task: Task = "listops"
    """Which task."""
    preset: Literal["quick", "paper"] = "quick"
    """Size of every run; see lra."""
    components: tuple[str, ...] = ()
    """Component functions, such as oprf posrf; or all."""
    weights: tuple[str, ...] = ()
    """Weight matrices, such as orf sorf; or all."""
    num_features: int = 128
    """Features of each head in the pairs."""
    attentions: tuple[str, ...] = ()
    """Others: softmax tree:64x16 softmax+gate=running."""
    seeds: int = 3
    """Seeds of every attention."""
    seed: int = 0
    """The first of them."""
    out: Path | None = None
    """Folder of the sweep; by default runs/sweep-TASK-PRESET."""
    devices: tuple[int, ...] | None = None
    """GPUs, with one process on each; by default all that are visible."""
    retry_failed: bool = False
    """Repeat failed runs."""

    def _check(self) -> None:
        if self.devices is not None and len(set(self.devices)) < len(self.devices):
            raise UserError(f"--devices must differ from each other; got {' '.join(map(str, self.devices))}.")
        if not (self.components or self.weights or self.attentions):
            raise UserError("a sweep needs --components and --weights, or --attentions; got none of them.")

    def spellings(self) -> list[str]:
        """All attentions, each once.

        Raises:
            UserError: an unknown name, or components without weights.

        Examples:
            >>> SweepOptions(components=("oprf",), weights=("orf", "sorf"), num_features=8).spellings()
            ['features:oprf-orf:8', 'features:oprf-sorf:8']
        """
        from jaxattn import COMPONENTS, WEIGHTS

        if bool(self.components) != bool(self.weights):
            raise UserError("--components and --weights belong together; got one of them.")
        every = []
        for flag, names, known in (
            ("--components", self.components, COMPONENTS),
            ("--weights", self.weights, WEIGHTS),
        ):
            unknown = [name for name in names if name != "all" and name not in known]
            if unknown:
                raise UserError(f"{flag} must be of {', '.join(known)}, or all; got {unknown[0]!r}.")
            every.append(known if "all" in names else names)
        pairs = [f"features:{c}-{w}:{self.num_features}" for c in every[0] for w in every[1]]
        return list(dict.fromkeys([*self.attentions, *pairs]))


def main(argv: Sequence[str]) -> int:
    """Runs what is not finished yet; returns the exit code."""
    import jax

    # This process computes nothing; a GPU that it opened would be missing to its runs.
    jax.config.update("jax_platforms", "cpu")
    own, rest = split_rest(argv)
    options = parse(SweepOptions, own, command="sweep")
    attentions = options.spellings()
    reserved = [word for word in rest if word.split("=")[0] in OWN]
    if reserved:
        raise UserError(f"{reserved[0]} is the sweep's own; give it before the --, if the sweep has it.")
    sweep = options.out or Path("runs") / f"sweep-{options.task}-{options.preset}"
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [SweepRun(name, seed) for seed in seeds for name in attentions]
    common = ["--task", options.task, "--preset", options.preset, *rest]
    configs = [parse_lra(run.flags(sweep, common)) for run in runs]  # errors show before anything runs
    ledger = Ledger(sweep, {"task": options.task, "preset": options.preset, "flags": rest})
    try:
        status = {run: (ledger.get(run.attention, run.seed) or {}).get("status") for run in runs}
        again = (None, "failed") if options.retry_failed else (None,)
        todo = [run for run in runs if status[run] in again]
        failed = [run for run in runs if run not in todo and status[run] == "failed"]
        print(f"{len(runs) - len(todo)} of {len(runs)} runs have ended already; results in {ledger.path}")
        for run in failed:
            print(f"failed before: {run}; --retry-failed tries it again")
        sys.stdout.flush()
        if not todo:
            return int(bool(failed))
        from jaxattn_train.tasks.lra.command import load_data

        load_data(configs[0])  # generated once, not by several runs at the same time
        code = run_all(todo, ledger, sweep=sweep, common=common, places=devices(options.devices))
        if code in (130, 143):
            print("stopped; the same command continues", flush=True)
        else:
            print(f"done; {program()} report --sweep {ledger.path}", flush=True)
        return code or int(bool(failed))
    finally:
        ledger.close()
