"""`jaxattn-train study`: attentions and positions of language models side by side over seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxattn_train.cli.parsing import parse, split_rest
from jaxattn_train.studies.runner import Study, StudyOptions, Summary, listed, without
from jaxattn_train.studies.tables import cell, markdown
from jaxattn_train.tasks.charlm.config import Preset
from jaxattn_train.tasks.charlm.config import parse as parse_charlm

# name -> (attention, positions) pairs.
STUDIES: dict[str, list[tuple[str, str]]] = {
    "gates": [
        ("softmax", "learned"),
        *[(f"softmax+gate={gate}", "learned") for gate in ("sequence", "running", "prefix", "none")],
        *[(a, "morlet") for a in ("softmax", "softmax+gate=running", "softmax+gate=none")],
        *[(a, "morlet:learned") for a in ("softmax", "softmax+gate=running", "softmax+gate=none")],
        *[(a, "rotary") for a in ("softmax", "softmax+gate=none")],
    ],
    "recency": [
        *[(f"softmax{gate}", "learned") for gate in ("", "+gate=running", "+gate=none", "+forget", "+alibi")],
        *[(f"softmax{gate}", "none") for gate in ("", "+forget", "+alibi")],
        *[(f"softmax{gate}", "rotary") for gate in ("", "+forget")],
    ],
}  # fmt: skip
KEPT = ("seeds", "parameters", "val_loss", "val_loss_whole", "val_loss_prefix", "seconds")


@dataclasses.dataclass(frozen=True)
class GatesOptions(StudyOptions):
    """Compares attentions and positions of character language models over seeds, in one JSON and one table.

    The same command again continues a study that was stopped. Flags of charlm after -- hold for all variants.
    """

    name: Literal["gates", "recency"] = "gates"
    """Which variants."""
    preset: Preset = "study"
    """Size of every run."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    own, rest = split_rest(argv)
    options = parse(GatesOptions, own, command="study")
    variants = []
    for attention, positions in STUDIES[options.name]:
        flags = ["--preset", options.preset, "--attention", attention, "--positions", positions]
        flags += ["--allow-leak"] if attention.endswith("sequence") else []
        variants.append((f"{attention}--{positions}", [*flags, "--sample-tokens", "0", *rest]))
    study = Study(
        "charlm",
        parse_charlm,
        runs=f"study-{options.name}-{options.preset}",
        out=f"charlm_{options.name}_{options.preset}.json",
        marker=f"charlm-{options.name}",
        common=_common,
        row=_row,
        table=table,
        compared="val_loss",
        differ_in="attention and positions",
    )
    return study.run(variants, options)


def _common(summary: Summary) -> dict[str, Any]:
    config = summary["config"]
    return {
        "model": without(config["model"], ("attention", "positions", "allow_leak")),
        "optimizer": config["optimizer"],
        **{name: summary[name] for name in ("steps", "corpus", "prefix_windows", "device", "versions")},
    }


def _row(summary: Summary) -> dict[str, Any]:
    model = summary["config"]["model"]
    named = {"attention": model["attention"], "positions": model["positions"]}
    return named | {name: summary[name] for name in KEPT}


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record: mean ± standard deviation over seeds."""
    model, device = record["model"], record["device"]
    losses = ("val_loss", "val_loss_whole", "val_loss_prefix")
    return markdown(
        ["attention", "positions", "validation loss", "whole windows", "prefixes"],
        [
            [f"`{row['attention']}`", row["positions"], *(cell(row[name]) for name in losses)]
            for row in record["rows"]
        ],
        f"Nats per character on {record['corpus']['name']}, mean ± standard deviation of seeds "
        f"{listed(record['rows'][0]['seeds'])}; "
        f"{model['num_layers']} layers, {model['num_heads']} heads, d {model['features']}, "
        f"T {model['context_length']}, batch {record['optimizer']['batch_size']}, {record['steps']} steps; "
        f"{device['kind']}, jax {record['versions']['jax']}, {record['date']}. The last two columns are one set of "
        f"{record['prefix_windows']} windows, read whole and read prefix by prefix, as generation sees them.",
    )
