"""The runner of studies: variants of a training command over seeds, in one JSON and one table.

Each variant is an ordinary run in a process of its own. A study that was stopped continues when the same command is
given again: finished runs are kept, and an unfinished one resumes.
"""

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import slug
from jaxattn_train.engine.metrics import mean, spread
from jaxattn_train.errors import UserError
from jaxattn_train.studies.tables import publish

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StudyOptions(Options, at_least={"seeds": 1}):
    """Options of every study."""

    seeds: int = 3
    """Seeds of every variant, trained side by side."""
    runs: Path | None = None
    """Folder of the runs; by default in runs, named after the study and its preset."""
    out: Path | None = None
    """The JSON; by default in benchmarks/results, named after the command and the preset."""
    tables: tuple[Path, ...] = ()
    """Markdown files in which to replace the table."""
    collect: bool = False
    """Train nothing; collect the finished runs. Variants without one keep their row in the JSON, if it has one."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and how it is summarised."""

    command: str
    """Subcommand of the runs."""
    parse: Callable[[Sequence[str]], Any]
    """Of that command: checks the flags of all variants before anything runs."""
    runs: str
    """Default folder of the runs."""
    out: str
    """Default file of the record."""
    marker: str
    """Name of the table in Markdown files."""
    common: Callable[[Summary], dict[str, Any]]
    """What must be equal in all runs."""
    row: Callable[[Summary], dict[str, Any]]
    """What belongs to a variant."""
    table: Callable[[Mapping[str, Any]], str]
    """The Markdown table of a record."""
    compared: str
    """The number whose difference to the first variant is taken, seed by seed."""
    differ_in: str
    """What variants may differ in, for the error message."""

    def run(self, variants: Sequence[tuple[str, Sequence[str]]], options: StudyOptions) -> int:
        """Trains what is not finished, then writes the record and the table; returns the exit code.

        Args:
            variants: names, and flags of the command.
            options: of the study.

        Raises:
            UserError: flags that make no sense, no finished run, or runs that differ in more than they may.
        """
        folders = self.folders(options.runs or Path("runs") / self.runs, [name for name, _ in variants])
        commands = {
            name: [*flags, "--seeds", str(options.seeds), "--out", str(folders[name])]
            for name, flags in variants
        }
        for flags in commands.values():
            self.parse(flags)
        if not options.collect and (code := self._train(commands, folders)):
            return code
        out = options.out or Path("benchmarks/results") / self.out
        earlier = json.loads(out.read_text()) if options.collect and out.exists() else None
        record = self.collect(folders, earlier)
        publish(
            record,
            self.table(record),
            out=out,
            tables=options.tables,
            name=self.marker,
            variants=len(variants),
        )
        return 0

    @staticmethod
    def folders(runs: Path, variants: Sequence[str]) -> dict[str, Path]:
        """A folder for every variant.

        Raises:
            UserError: two variants are the same.
        """
        found = {variant: runs / slug(variant) for variant in variants}
        if len(set(found.values())) < len(variants):
            raise UserError(f"--variants must differ from each other; got {', '.join(variants)}.")
        return found

    def _train(self, commands: Mapping[str, Sequence[str]], folders: Mapping[str, Path]) -> int:
        for variant, flags in commands.items():
            if not (folders[variant] / "summary.json").exists():
                print(f"=== {variant}", flush=True)
                code = subprocess.run(
                    [sys.executable, "-m", "jaxattn_train", self.command, *flags]
                ).returncode
                if code:
                    return code
        return 0

    def collect(
        self, folders: Mapping[str, Path], earlier: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The record of the finished runs.

        Args:
            folders: variant -> run folder.
            earlier: a record whose rows stand for runs that are no longer there.

        Returns:
            What is common to the runs, and one row for each variant; all but the first with the difference to it.

        Raises:
            UserError: no run is finished, or runs differ in more than they may.
        """
        rows: list[dict[str, Any]] = []
        shared: dict[str, Any] = {}
        known = {row["variant"]: row for row in earlier["rows"]} if earlier else {}
        for variant, folder in folders.items():
            if (folder / "summary.json").exists():
                summary = json.loads((folder / "summary.json").read_text())
                here, row = self.common(summary), {"variant": variant} | self.row(summary)
            elif earlier and variant in known:
                here, row = without(earlier, ["date", "rows"]), without(known[variant], ["difference"])
            else:
                continue
            different = [name for name in shared if not _agree(shared[name], here[name])]
            if different:
                raise UserError(
                    f"{folder} and the runs beside it differ in more than their {self.differ_in}: "
                    f"{', '.join(different)}. Give the study another --runs."
                )
            shared = here
            if rows:
                pairs = zip(row[self.compared]["per_seed"], rows[0][self.compared]["per_seed"], strict=True)
                differences = [a - b for a, b in pairs]
                row["difference"] = {
                    "to": rows[0]["variant"],
                    "mean": mean(differences),
                    "spread": spread(differences),
                    "per_seed": differences,
                }
            rows.append(row)
        if not rows:
            raise UserError(f"no finished run in {', '.join(map(str, folders.values()))}.")
        return {"date": datetime.date.today().isoformat(), **shared, "rows": rows}


def _agree(one: Any, other: Any) -> bool:
    """Whether two settings are equal, in the fields that both have."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    return bool(one == other)


def without(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The options but those that may differ."""
    return {name: value for name, value in options.items() if name not in names}


def listed(values: Collection[int]) -> str:
    """Numbers with commas between them."""
    return ", ".join(map(str, values))
