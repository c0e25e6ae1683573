"""`python -m train study`: attentions and positions side by side over seeds, collected in one JSON and one table.

Each variant is an ordinary `charlm` run in a process of its own, so a study that is stopped goes on where it was when
the same command is given again: finished runs are kept, a half-done one resumes.
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.tasks.charlm.config import PRESETS

# name -> (attention, positions) pairs.
STUDIES: dict[str, list[tuple[str, str]]] = {
    "gates": [
        ("softmax", "learned"),
        *[(f"softmax+gate={gate}", "learned") for gate in ("sequence", "running", "prefix", "none")],
        *[(a, "morlet") for a in ("softmax", "softmax+gate=running", "softmax+gate=none")],
        *[(a, "morlet:learned") for a in ("softmax", "softmax+gate=running", "softmax+gate=none")],
        *[(a, "rotary") for a in ("softmax", "softmax+gate=none")],
    ],
}  # fmt: skip
END = "<!-- /results -->"


def main(argv: Sequence[str]) -> int:
    """Runs the variants that are not finished yet, then writes the JSON and the tables."""
    parser = argparse.ArgumentParser(prog="python -m train study", description=__doc__)
    parser.add_argument("--name", choices=STUDIES, default="gates", help="which variants (default: gates)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="study", help="size of every run (default: study)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant, trained side by side")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/study-NAME-PRESET)")
    parser.add_argument(
        "--out", type=Path, help="the JSON (default: benchmarks/results/charlm_NAME_PRESET.json)"
    )
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="Markdown files whose table to renew"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing; collect what is finished")
    parser.add_argument(
        "rest", nargs="*", help="after --: further flags of charlm, the same for all variants"
    )
    args = parser.parse_args(argv)
    runs = args.runs or Path("runs") / f"study-{args.name}-{args.preset}"
    out = args.out or Path("benchmarks/results") / f"charlm_{args.name}_{args.preset}.json"
    folders = {variant: runs / "--".join(variant).replace(":", "-") for variant in STUDIES[args.name]}
    if not args.collect:
        for (attention, positions), folder in folders.items():
            if (folder / "summary.json").exists():
                continue
            print(f"=== {attention}, positions {positions}", flush=True)
            flags = ["--preset", args.preset, "--attention", attention, "--positions", positions]
            flags += ["--seeds", str(args.seeds), "--out", str(folder), "--sample-tokens", "0", *args.rest]
            flags += ["--allow-leak"] if attention.endswith("sequence") else []
            code = subprocess.run([sys.executable, "-m", "train", "charlm", *flags]).returncode
            if code:
                return code
    rows = collect(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows['rows'])} of {len(folders)} variants in {out}\n\n{table(rows)}")
    for path in args.tables:
        renew(path, table(rows))
    return 0


def collect(folders: dict[tuple[str, str], Path]) -> dict[str, Any]:
    """Puts the summaries of the finished runs into one record.

    Args:
        folders: (attention, positions) -> run folder.

    Returns:
        What is common to the runs, and one row a variant.

    Raises:
        UserError: no run is finished.
    """
    rows, common = [], {}
    for (attention, positions), folder in folders.items():
        if not (folder / "summary.json").exists():
            continue
        summary = json.loads((folder / "summary.json").read_text())
        kept = ("seeds", "parameters", "val_loss", "val_loss_whole", "val_loss_prefix", "seconds")
        rows.append({"attention": attention, "positions": positions} | {k: summary[k] for k in kept})
        config = summary["config"]
        common = {
            "steps": summary["steps"],
            "model": {
                k: v for k, v in config["model"].items() if k not in ("attention", "positions", "allow_leak")
            },
            "optimizer": config["optimizer"],
            "corpus": summary["corpus"],
            "prefix_windows": summary["prefix_windows"],
            "device": summary["device"],
            "versions": summary["versions"],
        }
    if not rows:
        raise UserError(f"no finished run in {', '.join(map(str, folders.values()))}.")
    return {"date": datetime.date.today().isoformat(), **common, "rows": rows}


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    model, seeds = record["model"], record["rows"][0]["seeds"]
    device = record["device"]
    lines = [
        "| attention | positions | validation loss | whole windows | prefixes |",
        "|---|---|---|---|---|",
        *(
            f"| `{row['attention']}` | {row['positions']} | "
            + " | ".join(_cell(row[k]) for k in ("val_loss", "val_loss_whole", "val_loss_prefix"))
            + " |"
            for row in record["rows"]
        ),
        "",
        f"Nats per character on {record['corpus']['name']}, mean ± standard deviation of seeds {_listed(seeds)}; "
        f"{model['num_layers']} layers, {model['num_heads']} heads, d {model['features']}, "
        f"T {model['context_length']}, batch {record['optimizer']['batch_size']}, {record['steps']} steps; "
        f"{device['kind']}, jax {record['versions']['jax']}, {record['date']}. The last two columns are one set of "
        f"{record['prefix_windows']} windows, read whole and read prefix by prefix, as generation sees them.",
    ]
    return "\n".join(lines)


def renew(path: Path, text: str, *, name: str = "charlm") -> None:
    """Replaces what stands between the markers of the table `name` in a Markdown file.

    Raises:
        UserError: the file has no markers.
    """
    start = f"<!-- results:{name} -->"
    old = path.read_text(encoding="utf-8")
    head, found, tail = old.partition(start)
    if not found or END not in tail:
        raise UserError(f"{path} has no lines {start} and {END} to put a table between.")
    path.write_text(f"{head}{start}\n{text}\n{END}{tail.partition(END)[2]}", encoding="utf-8")


def _cell(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["spread"] is None else f" ± {value['spread']:.3f}")


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
