"""`python -m train classify-study`: text classifiers side by side over seeds, in one JSON and one table.

A variant is an attention, with further flags of its own where it needs them: "softmax", "tree",
"tree --max-branching 8". Each is an ordinary `classify` run in a process of its own, so a study that is stopped goes
on where it was when the same command is given again: finished runs are kept, a half-done one resumes.
"""

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.classify_config import PRESETS, parse
from train.errors import UserError
from train.metrics import mean, spread
from train.study import renew

KEPT = (
    *("parameters", "accuracy", "loss", "val_accuracy", "last_val_accuracy", "best_step"),
    *("compiled_shapes", "seconds", "seconds_per_step", "tokens_per_second"),
)


def main(argv: Sequence[str]) -> int:
    """Runs the variants that are not finished yet, then writes the JSON and the table."""
    parser = argparse.ArgumentParser(prog="python -m train classify-study", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="sst2-study", help="data and size of every run")
    parser.add_argument(
        "--variants", nargs="+", default=["softmax", "tree"], metavar="VARIANT", help="default: softmax tree"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant (default: 3)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/classify-study-PRESET)")
    parser.add_argument(
        "--out", type=Path, help="the JSON (default: benchmarks/results/classify_PRESET.json)"
    )
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="Markdown files whose table to renew"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing; collect what is finished")
    parser.add_argument(
        "rest", nargs="*", help="after --: further flags of classify, the same for all variants"
    )
    args = parser.parse_args(argv)
    runs = args.runs or Path("runs") / f"classify-study-{args.preset}"
    out = args.out or Path("benchmarks/results") / f"classify_{args.preset.replace('-', '_')}.json"
    folders = {variant: runs / re.sub(r"[^\w.+=-]+", "-", variant) for variant in args.variants}
    if len(set(folders.values())) < len(args.variants):
        raise UserError(f"--variants must differ from each other; got {', '.join(args.variants)}.")
    commands = {
        variant: [
            *("--preset", args.preset, "--attention", *shlex.split(variant)),
            *("--seeds", str(args.seeds), "--out", str(folder), *args.rest),
        ]
        for variant, folder in folders.items()
    }
    for flags in commands.values():
        parse(flags)  # a mistake in the last variant should not show after hours
    if not args.collect:
        for variant, folder in folders.items():
            if (folder / "summary.json").exists():
                continue
            print(f"=== {variant}", flush=True)
            code = subprocess.run([sys.executable, "-m", "train", "classify", *commands[variant]]).returncode
            if code:
                return code
    record = collect(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record['rows'])} of {len(folders)} variants in {out}\n\n{table(record)}")
    for path in args.tables:
        renew(path, table(record), name=f"classify-{args.preset}")
    return 0


def collect(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Puts the summaries of the finished runs into one record.

    Args:
        folders: variant -> run folder.

    Returns:
        What is common to the runs, and one row a variant; each row but the first has the difference of its accuracy
        to that of the first, seed by seed.

    Raises:
        UserError: no run is finished, or runs differ in more than their attention.
    """
    rows: list[dict[str, Any]] = []
    common: dict[str, Any] = {}
    for variant, folder in folders.items():
        if not (folder / "summary.json").exists():
            continue
        summary = json.loads((folder / "summary.json").read_text())
        config = summary["config"]
        here = {
            "seeds": summary["seeds"],
            "steps": summary["steps"],
            "model": {k: v for k, v in config["model"].items() if k != "attention"},
            "optimizer": config["optimizer"],
            # Notes say what was cut or joined, also for the trees that some variants have: they are the row's.
            "data": {k: v for k, v in summary["data"].items() if k not in ("trees", "notes")},
            "texts": {k: v for k, v in config["data"].items() if k not in ("max_branching", "data_path")},
            "measured_on": summary["measured_on"],
            "device": summary["device"],
            "versions": summary["versions"],
        }
        different = [name for name in common if common[name] != here[name]]
        if different:
            raise UserError(
                f"{folder} and the runs beside it differ in more than their attention: {', '.join(different)}. Give "
                "the study another --runs."
            )
        common = here
        row = {"variant": variant, "attention": config["model"]["attention"]} | {k: summary[k] for k in KEPT}
        row["notes"] = summary["data"]["notes"]
        if rows:
            pairs = zip(row["accuracy"]["per_seed"], rows[0]["accuracy"]["per_seed"], strict=True)
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
    return {"date": datetime.date.today().isoformat(), **common, "rows": rows}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    model, data, device = record["model"], record["data"], record["device"]
    lines = [
        f"| attention | {record['measured_on']} accuracy | difference | validation accuracy | seconds a step |",
        "|---|---|---|---|---|",
        *(
            f"| `{row['variant']}` | {_percent(row['accuracy'])} | {_percent(row.get('difference'))} | "
            f"{_percent(row['val_accuracy'])} | {row['seconds_per_step']:.3f} |"
            for row in record["rows"]
        ),
        "",
        f"Percent on {data['name']} ({data['examples'][record['measured_on']]:,} texts, at most "
        f"{record['texts']['max_length']} words), mean ± standard deviation of seeds "
        f"{', '.join(map(str, record['seeds']))}, each at the best checkpoint by validation accuracy; the difference "
        f"is to the first row, seed by seed. {model['num_layers']} layers, {model['num_heads']} heads, d "
        f"{model['features']}, batch {record['optimizer']['batch_size']}, {record['steps']} steps; a step trains all "
        f"seeds. {device['kind']}, jax {record['versions']['jax']}, {record['date']}.",
    ]
    return "\n".join(lines)


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    sign = "+" if "to" in value else ""
    spread = "" if value["spread"] is None else f" ± {100 * value['spread']:.2f}"
    return f"{100 * value['mean']:{sign}.2f}{spread}"
