"""What studies of classifiers have in common: variants of a command over seeds, in one JSON and one table.

Each variant is an ordinary run in a process of its own, so a study that is stopped goes on where it was when the same
command is given again: finished runs are kept, a half-done one resumes.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.engine.metrics import mean, spread
from train.errors import UserError
from train.studies.gates import renew


def add_flags(parser: argparse.ArgumentParser, *, runs: str, out: str, command: str) -> None:
    """The flags that every study has.

    Args:
        parser: gets them.
        runs: the default folder of the runs, for --help.
        out: the default file, for --help.
        command: the subcommand that is run.
    """
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant (default: 3)")
    parser.add_argument("--runs", type=Path, help=f"folder of the runs (default: {runs})")
    parser.add_argument("--out", type=Path, help=f"the JSON (default: {out})")
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="Markdown files whose table to renew"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing; collect what is finished")
    parser.add_argument(
        "rest", nargs="*", help=f"after --: further flags of {command}, the same for all variants"
    )


def folders_of(runs: Path, variants: Sequence[str]) -> dict[str, Path]:
    """A folder for every variant.

    Raises:
        UserError: two variants are the same.
    """
    folders = {variant: runs / re.sub(r"[^\w.+=-]+", "-", variant).strip("-") for variant in variants}
    if len(set(folders.values())) < len(variants):
        raise UserError(f"--variants must differ from each other; got {', '.join(variants)}.")
    return folders


def train_missing(subcommand: str, commands: Mapping[str, Sequence[str]], folders: Mapping[str, Path]) -> int:
    """Runs the variants that are not finished yet, one after another; returns the exit code of the last."""
    for variant, folder in folders.items():
        if (folder / "summary.json").exists():
            continue
        print(f"=== {variant}", flush=True)
        code = subprocess.run([sys.executable, "-m", "train", subcommand, *commands[variant]]).returncode
        if code:
            return code
    return 0


def collect(
    folders: Mapping[str, Path],
    *,
    common: Callable[[dict[str, Any]], dict[str, Any]],
    row: Callable[[dict[str, Any]], dict[str, Any]],
    compared: str,
    besides: str,
) -> dict[str, Any]:
    """Puts the summaries of the finished runs into one record.

    Args:
        folders: variant -> run folder.
        common: from a summary to what must be equal in all of them.
        row: from a summary to what is the variant's own.
        compared: the number whose difference to the first row is taken, seed by seed.
        besides: what runs may differ in, for the complaint.

    Returns:
        What is common to the runs, and one row a variant.

    Raises:
        UserError: no run is finished, or runs differ in more than they may.
    """
    rows: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for variant, folder in folders.items():
        if not (folder / "summary.json").exists():
            continue
        summary = json.loads((folder / "summary.json").read_text())
        here = common(summary)
        different = [name for name in shared if shared[name] != here[name]]
        if different:
            raise UserError(
                f"{folder} and the runs beside it differ in more than their {besides}: {', '.join(different)}. Give "
                "the study another --runs."
            )
        shared = here
        line = {"variant": variant} | row(summary)
        if rows:
            pairs = zip(line[compared]["per_seed"], rows[0][compared]["per_seed"], strict=True)
            differences = [a - b for a, b in pairs]
            line["difference"] = {
                "to": rows[0]["variant"],
                "mean": mean(differences),
                "spread": spread(differences),
                "per_seed": differences,
            }
        rows.append(line)
    if not rows:
        raise UserError(f"no finished run in {', '.join(map(str, folders.values()))}.")
    return {"date": datetime.date.today().isoformat(), **shared, "rows": rows}


def publish(
    record: dict[str, Any], table: str, *, out: Path, tables: Sequence[Path], name: str, variants: int
) -> None:
    """Writes the JSON, prints the table, and renews it in Markdown files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record['rows'])} of {variants} variants in {out}\n\n{table}")
    for path in tables:
        renew(path, table, name=name)


def percent(value: Mapping[str, Any] | None) -> str:
    """A mean over seeds in percent with its spread; a difference has a sign, and nothing is an empty cell.

    Examples:
        >>> percent({"mean": 0.5, "spread": 0.01}), percent({"to": "x", "mean": 0.5, "spread": None}), percent(None)
        ('50.00 ± 1.00', '+50.00', '')
    """
    if value is None:
        return ""
    sign = "+" if "to" in value else ""
    between = "" if value["spread"] is None else f" ± {100 * value['spread']:.2f}"
    return f"{100 * value['mean']:{sign}.2f}{between}"
