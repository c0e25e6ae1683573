"""`jaxattn-train classify-study`: text classifiers side by side over seeds."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxattn_train.cli.parsing import parse, split_rest
from jaxattn_train.studies.runner import Study, StudyOptions, Summary, listed, without
from jaxattn_train.studies.tables import markdown, percent
from jaxattn_train.tasks.classify.config import Preset
from jaxattn_train.tasks.classify.config import parse as parse_classify

KEPT = (
    *("parameters", "accuracy", "loss", "val_accuracy", "last_val_accuracy", "best_step"),
    *("compiled_shapes", "seconds", "seconds_per_step", "tokens_per_second"),
)


@dataclasses.dataclass(frozen=True)
class ClassifyStudyOptions(StudyOptions):
    """Compares text classifiers over seeds, in one JSON and one table.

    The same command again continues a study that was stopped. Flags of classify after -- hold for all variants.
    """

    preset: Preset = "sst2-study"
    """Data and size of every run."""
    variants: tuple[str, ...] = ("softmax", "tree")
    """Attentions, with further flags where they need them: softmax tree "tree --max-branching 8"."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    own, rest = split_rest(argv)
    options = parse(ClassifyStudyOptions, own, command="classify-study")
    variants = [
        (variant, ["--preset", options.preset, "--attention", *shlex.split(variant), *rest])
        for variant in options.variants
    ]
    return make_study(options.preset).run(variants, options)


def make_study(preset: str) -> Study:
    """The study of a preset."""
    return Study(
        "classify",
        parse_classify,
        runs=f"classify-study-{preset}",
        out=f"classify_{preset.replace('-', '_')}.json",
        marker=f"classify-{preset}",
        common=_common,
        row=_row,
        table=table,
        compared="accuracy",
        differ_in="attention",
    )


def _common(summary: Summary) -> dict[str, Any]:
    config = summary["config"]
    return {
        "model": without(config["model"], ["attention"]),
        "optimizer": config["optimizer"],
        # Notes also describe the trees, which only some variants read: they belong to the row.
        "data": without(summary["data"], ("trees", "notes")),
        "texts": without(config["data"], ("max_branching", "data_path")),
        **{name: summary[name] for name in ("seeds", "steps", "measured_on", "device", "versions")},
    }


def _row(summary: Summary) -> dict[str, Any]:
    row = {"attention": summary["config"]["model"]["attention"]} | {name: summary[name] for name in KEPT}
    return row | {"notes": summary["data"]["notes"]}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    model, data, device, measured = (record[name] for name in ("model", "data", "device", "measured_on"))
    return markdown(
        ["attention", f"{measured} accuracy", "difference", "validation accuracy", "seconds a step"],
        [
            [
                f"`{row['variant']}`",
                *(percent(row.get(name)) for name in ("accuracy", "difference", "val_accuracy")),
                f"{row['seconds_per_step']:.3f}",
            ]
            for row in record["rows"]
        ],
        f"Percent on {data['name']} ({data['examples'][measured]:,} texts, at most "
        f"{record['texts']['max_length']} words), mean ± standard deviation of seeds {listed(record['seeds'])}, each "
        "at the best checkpoint by validation accuracy; the difference is to the first row, seed by seed. "
        f"{model['num_layers']} layers, {model['num_heads']} heads, d "
        f"{model['features']}, batch {record['optimizer']['batch_size']}, {record['steps']} steps; a step trains all "
        f"seeds. {device['kind']}, jax {record['versions']['jax']}, {record['date']}.",
    )
