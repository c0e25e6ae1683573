"""`python -m train classify-study`: text classifiers side by side over seeds, in one JSON and one table.

A variant is an attention, with further flags of its own where it needs them: "softmax", "tree",
"tree --max-branching 8". A study that is stopped goes on where it was when the same command is given again.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.studies import variants
from train.tasks.classify.config import PRESETS, parse

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
    variants.add_flags(
        parser,
        runs="runs/classify-study-PRESET",
        out="benchmarks/results/classify_PRESET.json",
        command="classify",
    )
    args = parser.parse_args(argv)
    runs = args.runs or Path("runs") / f"classify-study-{args.preset}"
    out = args.out or Path("benchmarks/results") / f"classify_{args.preset.replace('-', '_')}.json"
    folders = variants.folders_of(runs, args.variants)
    commands = {
        variant: [
            *("--preset", args.preset, "--attention", *shlex.split(variant)),
            *("--seeds", str(args.seeds), "--out", str(folder), *args.rest),
        ]
        for variant, folder in folders.items()
    }
    for flags in commands.values():
        parse(flags)  # a mistake in the last variant should not show after hours
    code = 0 if args.collect else variants.train_missing("classify", commands, folders)
    if code:
        return code
    record = collect(folders)
    variants.publish(
        record,
        table(record),
        out=out,
        tables=args.tables,
        name=f"classify-{args.preset}",
        variants=len(folders),
    )
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
    return variants.collect(folders, common=_common, row=_row, compared="accuracy", besides="attention")


def _common(summary: dict[str, Any]) -> dict[str, Any]:
    config = summary["config"]
    return {
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


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    row = {"attention": summary["config"]["model"]["attention"]} | {k: summary[k] for k in KEPT}
    return row | {"notes": summary["data"]["notes"]}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    model, data, device = record["model"], record["data"], record["device"]
    lines = [
        f"| attention | {record['measured_on']} accuracy | difference | validation accuracy | seconds a step |",
        "|---|---|---|---|---|",
        *(
            f"| `{row['variant']}` | {variants.percent(row['accuracy'])} | "
            f"{variants.percent(row.get('difference'))} | "
            f"{variants.percent(row['val_accuracy'])} | {row['seconds_per_step']:.3f} |"
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
