"""`jaxattn-train mqar-study`: attentions side by side on multi-query associative recall, over seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxattn_train.cli.parsing import parse, split_rest
from jaxattn_train.studies.runner import Study, StudyOptions, Summary, listed, without
from jaxattn_train.studies.tables import markdown, percent
from jaxattn_train.tasks.mqar.config import parse as parse_mqar

KEPT = ("seeds", "parameters", "accuracy", "accuracy_by_pairs", "seconds")


@dataclasses.dataclass(frozen=True)
class RecallStudyOptions(StudyOptions):
    """Compares attentions on multi-query associative recall over seeds, in one JSON and one table.

    The same command again continues a study that was stopped. Flags of mqar after -- hold for all variants.
    """

    variants: tuple[str, ...] = (
        *("softmax", "features:oprf-orf:128", "tree:16x4", "linear:elu", "linear:elu+forget"),
        *("softmax+gate=none", "softmax+forget"),
    )
    """Attentions."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    own, rest = split_rest(argv)
    options = parse(RecallStudyOptions, own, command="mqar-study")
    variants = [(variant, ["--attention", variant, *rest]) for variant in options.variants]
    study = Study(
        "mqar",
        parse_mqar,
        runs="study-mqar",
        out="mqar_study.json",
        marker="mqar",
        common=_common,
        row=_row,
        table=table,
        compared="accuracy",
        differ_in="attention",
    )
    return study.run(variants, options)


def _common(summary: Summary) -> dict[str, Any]:
    config = summary["config"]
    return {
        "model": without(config["model"], ["attention"]),
        **{name: config[name] for name in ("data", "optimizer", "evaluation")},
        **{name: summary[name] for name in ("steps", "device", "versions")},
    }


def _row(summary: Summary) -> dict[str, Any]:
    return {name: summary[name] for name in KEPT}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: accuracy in percent, mean ± standard deviation over seeds."""
    model, data, optimizer = record["model"], record["data"], record["optimizer"]
    rows, numbers = record["rows"], list(record["rows"][0]["accuracy_by_pairs"])
    return markdown(
        ["attention", *(f"{pairs} pairs" for pairs in numbers)],
        [[f"`{row['variant']}`", *(percent(row["accuracy_by_pairs"][n]) for n in numbers)] for row in rows],
        f"Accuracy in percent on {record['evaluation']['test_rows']} rows of each number of pairs, mean ± standard "
        f"deviation of seeds {listed(rows[0]['seeds'])}; layers {model['num_layers']}, heads {model['num_heads']}, "
        f"d {model['features']}, {model['positions']} positions, a convolution over two tokens, T {data['length']}, "
        f"{data['num_keys']} keys, batch {optimizer['batch_size']}, {record['steps']} steps; "
        f"{record['device']['kind']}, jax {record['versions']['jax']}, {record['date']}.",
    )
