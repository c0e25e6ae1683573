"""`jaxattn-train finetune-study`: heads of a fine-tuned encoder side by side over seeds."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxattn_train.cli.parsing import parse, split_rest
from jaxattn_train.errors import UserError
from jaxattn_train.studies.runner import Study, StudyOptions, Summary, listed, without
from jaxattn_train.studies.tables import markdown, percent
from jaxattn_train.tasks.finetune.config import INCEPTIVE_ONLY, MINILM, Preset
from jaxattn_train.tasks.finetune.config import parse as parse_finetune

VARIANTS = {
    "cls": "--head cls",
    "mean": "--head mean",
    "no-convolution": "--no-convolution",
    "no-attention": "--head-attention none",
    **{f"kernel-{width}": f"--kernels {width}" for width in (2, 3, 5, 7)},
    "inceptive": "",
}
# What a head is made of: variants differ in these and in nothing else.
HEAD = ("head", "dropout", *INCEPTIVE_ONLY)
PATHS = ("data_path", "train_file", "validation_file", "test_file")
KEPT = (
    *(
        "parameters",
        "parameters_total",
        "f1",
        "micro_f1",
        "weighted_f1",
        "accuracy",
        "auc",
        "loss",
        "val_f1",
        "val_accuracy",
    ),
    *(
        "val_loss",
        "best_step",
        "steps",
        "compiled_shapes",
        "seconds",
        "seconds_per_step",
        "thresholds",
        "at_half",
    ),
)


@dataclasses.dataclass(frozen=True)
class HeadsOptions(StudyOptions):
    """Compares heads of a fine-tuned encoder over seeds, in one JSON and one table.

    The same command again continues a study that was stopped. Flags of finetune after -- hold for all variants.
    """

    dataset: Preset = "irony"
    """Preset of every run."""
    variants: tuple[str, ...] = ("cls", "mean", "no-convolution", "no-attention", "kernel-3", "inceptive")
    """Of cls, mean, no-convolution, no-attention, kernel-2, kernel-3, kernel-5, kernel-7, inceptive, or flags of
    finetune in quotes, such as "--kernels 2 3 --normalization batch"; all are compared to the first."""
    encoder: str = MINILM
    """Folder or name of the encoder."""
    encoder_name: str | None = None
    """Its name in the record; by default as --encoder."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    own, rest = split_rest(argv)
    options = parse(HeadsOptions, own, command="finetune-study")
    variants = []
    for variant in map(str.strip, options.variants):
        if variant not in VARIANTS and not variant.startswith("--"):
            raise UserError(
                f"--variants must be of {', '.join(VARIANTS)}, or flags of finetune in quotes; got {variant!r}."
            )
        flags = ["--preset", options.dataset, "--encoder", options.encoder]
        variants.append((variant, [*flags, *shlex.split(VARIANTS.get(variant, variant)), *rest]))
    study = Study(
        "finetune",
        parse_finetune,
        runs=f"finetune-study-{options.dataset}",
        out=f"finetune_{options.dataset.replace('-', '_')}.json",
        marker=f"finetune-{options.dataset}",
        common=lambda summary: _common(summary, options.encoder_name),
        row=_row,
        table=table,
        compared="f1",
        differ_in="head",
    )
    return study.run(variants, options)


def _common(summary: Summary, encoder_name: str | None) -> dict[str, Any]:
    config = summary["config"]
    model = without(config["model"], HEAD)
    return {
        "model": model | {"encoder": encoder_name or model["encoder"]},
        "optimizer": config["optimizer"],
        "patience": config["evaluation"]["patience"],
        "data": without(summary["data"], ["trees"]),
        "texts": without(config["data"], PATHS),
        **{name: summary[name] for name in ("seeds", "measured_on", "device", "versions")},
    }


def _row(summary: Summary) -> dict[str, Any]:
    head = {name: value for name, value in summary["config"]["model"].items() if name in HEAD}
    return {"model": head} | {name: summary[name] for name in KEPT if name in summary}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    data, device, optimizer = record["data"], record["device"], record["optimizer"]
    measured, encoder = record["measured_on"], record["model"]["encoder"]
    steps = sorted({row["steps"] for row in record["rows"]})
    frozen = ", frozen" if record["model"]["freeze_encoder"] else ""
    head_lr = "" if optimizer["head_lr"] is None else f" (head {optimizer['head_lr']:g})"
    several = "at_half" in record["rows"][0]
    scores = {"f1": f"{measured} macro-F1", "difference": "difference", "weighted_f1": "weighted F1"}
    if several:
        scores |= {"f1_at_half": "macro-F1 at 0.5", "micro_f1": "micro-F1"}
    scores["accuracy"] = "all labels right" if several else "accuracy"
    rows = [row | {"f1_at_half": row.get("at_half", {}).get("f1")} for row in record["rows"]]
    return markdown(
        ["head", *scores.values(), "parameters trained"],
        [
            [
                f"`{row['variant']}`",
                *(percent(row.get(name)) for name in scores),
                f"{row['parameters']:,}",
            ]
            for row in rows
        ],
        f"Percent on {data['name']} ({data['examples'][measured]:,} texts, at most {record['texts']['max_length']} "
        f"tokens), mean ± standard deviation of seeds {listed(record['seeds'])}, at the best checkpoint "
        f"by validation macro-F1 (mean over the seeds); the difference is to the first row, seed by seed. {encoder}"
        f"{frozen}, lr {optimizer['lr']:g}{head_lr}, batch {optimizer['batch_size']}, "
        f"{' or '.join(map(str, steps))} steps. {device['kind']}, jax "
        f"{record['versions']['jax']}, {record['date']}.",
    )
