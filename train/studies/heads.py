"""`python -m train finetune-study`: heads of a fine-tuned encoder side by side over seeds, in one JSON and one table.

A variant is a name of the table in this file, such as cls or inceptive, or flags of `finetune` of your own, such as
"--kernels 2 3 --normalization batch". A study that is stopped goes on where it was when the same command is given
again.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.studies import variants
from train.tasks.finetune.config import INCEPTIVE_ONLY, MINILM, PRESETS, parse

VARIANTS = {
    "cls": "--head cls",
    "mean": "--head mean",
    "no-convolution": "--no-convolution",
    "no-attention": "--head-attention none",
    **{f"kernel-{width}": f"--kernels {width}" for width in (2, 3, 5, 7)},
    "inceptive": "",
}
DEFAULT = ("cls", "mean", "no-convolution", "no-attention", "kernel-3", "inceptive")
# What a head is made of: variants differ in these and in nothing else.
HEAD = ("head", "dropout", *INCEPTIVE_ONLY)
KEPT = (
    *("parameters", "parameters_total", "f1", "weighted_f1", "accuracy", "auc", "loss"),
    *(
        "val_f1",
        "val_accuracy",
        "val_loss",
        "best_step",
        "steps",
        "compiled_shapes",
        "seconds",
        "seconds_per_step",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Runs the variants that are not finished yet, then writes the JSON and the table."""
    parser = argparse.ArgumentParser(prog="python -m train finetune-study", description=__doc__)
    parser.add_argument("--dataset", choices=PRESETS, default="irony", help="preset of every run")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(DEFAULT),
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)}, or flags; others are compared to the first (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--encoder", default=MINILM, help=f"folder or name (default: {MINILM})")
    parser.add_argument("--encoder-name", help="what to call it in the record (default: as --encoder)")
    variants.add_flags(
        parser,
        runs="runs/finetune-study-DATASET",
        out="benchmarks/results/finetune_DATASET.json",
        command="finetune",
    )
    args = parser.parse_args(argv)
    runs = args.runs or Path("runs") / f"finetune-study-{args.dataset}"
    out = args.out or Path("benchmarks/results") / f"finetune_{args.dataset}.json"
    folders = variants.folders_of(runs, args.variants)
    commands = {}
    for variant, folder in folders.items():
        if variant not in VARIANTS and not variant.startswith("--"):
            raise UserError(
                f"--variants must be of {', '.join(VARIANTS)}, or flags of finetune in quotes; got {variant!r}."
            )
        commands[variant] = [
            *("--preset", args.dataset, "--encoder", args.encoder),
            *shlex.split(VARIANTS.get(variant, variant)),
            *("--seeds", str(args.seeds), "--out", str(folder), *args.rest),
        ]
        parse(commands[variant])  # a mistake in the last variant should not show after hours
    code = 0 if args.collect else variants.train_missing("finetune", commands, folders)
    if code:
        return code
    record = collect(folders, encoder_name=args.encoder_name)
    name = f"finetune-{args.dataset}"
    variants.publish(record, table(record), out=out, tables=args.tables, name=name, variants=len(folders))
    return 0


def collect(folders: Mapping[str, Path], *, encoder_name: str | None = None) -> dict[str, Any]:
    """Puts the summaries of the finished runs into one record.

    Args:
        folders: variant -> run folder.
        encoder_name: what to call the encoder; None for what --encoder said.

    Returns:
        What is common to the runs, and one row a variant; each row but the first has the difference of its macro-F1
        to that of the first, seed by seed.

    Raises:
        UserError: no run is finished, or runs differ in more than their head.
    """

    def common(summary: dict[str, Any]) -> dict[str, Any]:
        config = summary["config"]
        model = {k: v for k, v in config["model"].items() if k not in HEAD}
        paths = ("data_path", "train_file", "validation_file", "test_file")
        return {
            "seeds": summary["seeds"],
            "model": model | {"encoder": encoder_name or model["encoder"]},
            "optimizer": config["optimizer"],
            "patience": config["evaluation"]["patience"],
            "data": {k: v for k, v in summary["data"].items() if k != "trees"},
            "texts": {k: v for k, v in config["data"].items() if k not in paths},
            "measured_on": summary["measured_on"],
            "device": summary["device"],
            "versions": summary["versions"],
        }

    def row(summary: dict[str, Any]) -> dict[str, Any]:
        head = {k: v for k, v in summary["config"]["model"].items() if k in HEAD}
        return {"model": head} | {k: summary.get(k) for k in KEPT}

    return variants.collect(folders, common=common, row=row, compared="f1", besides="head")


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    data, device, optimizer = record["data"], record["device"], record["optimizer"]
    measured, encoder = record["measured_on"], record["model"]["encoder"]
    steps = sorted({row["steps"] for row in record["rows"]})
    frozen = ", frozen" if record["model"]["freeze_encoder"] else ""
    head_lr = "" if optimizer["head_lr"] is None else f" (head {optimizer['head_lr']:g})"
    lines = [
        f"| head | {measured} macro-F1 | difference | weighted F1 | accuracy | parameters trained | seconds a step |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{row['variant']}` | {variants.percent(row['f1'])} | {variants.percent(row.get('difference'))} | "
            f"{variants.percent(row['weighted_f1'])} | {variants.percent(row['accuracy'])} | {row['parameters']:,} | "
            f"{row['seconds_per_step']:.2f} |"
            for row in record["rows"]
        ),
        "",
        f"Percent on {data['name']} ({data['examples'][measured]:,} texts, at most {record['texts']['max_length']} "
        f"tokens), mean ± standard deviation of seeds {', '.join(map(str, record['seeds']))}, at the best checkpoint "
        f"by validation macro-F1 (mean over the seeds); the difference is to the first row, seed by seed. {encoder}"
        f"{frozen}, lr {optimizer['lr']:g}{head_lr}, batch {optimizer['batch_size']}, "
        f"{' or '.join(map(str, steps))} steps; a step trains all seeds. {device['kind']}, jax "
        f"{record['versions']['jax']}, {record['date']}.",
    ]
    return "\n".join(lines)
