"""Tables of training steps."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import INTERRUPTED, command, figures, grid, machine, status, versions


def training_section(document: Mapping[str, Any]) -> str:
    """Seconds a step, a line for each attention, with the speedup over softmax."""
    rows, settings = document["rows"], document["settings"]
    lengths = sorted({row["length"] for row in rows})
    found = {(row["attention"], row["length"]): row for row in rows}

    def cell(attention: str, length: int) -> str:
        row = found.get((attention, length), {"status": "ok"})
        ratio = row.get("ratios", {}).get("softmax")
        return _seconds(row) + (
            "" if ratio is None or attention == "softmax" else f" ({figures(1 / ratio)}×)"
        )

    attentions = dict.fromkeys(row["attention"] for row in rows)
    lines = {f"`{attention}`": [cell(attention, length) for length in lengths] for attention in attentions}
    parts = [
        grid("attention", [f"T {length:,}" for length in lengths], lines),
        f"Seconds of a training step of the `{settings['task']}` task's published set-up, "
        f"{settings['batch']} sequences of full length; in brackets how many times faster than softmax. "
        f"Medians of {settings['repeats']} rounds in which all take turns. {machine(document)}, "
        f"{versions(document)} {command(document)}",
    ]
    return "\n\n".join(parts if document["complete"] else [*parts, INTERRUPTED])


def head_section(document: Mapping[str, Any]) -> str:
    """Seconds a step, a line for each head, with the ratio to the first."""
    settings, peer = document["settings"], document["settings"]["peer"]
    encoder = settings["encoder"]
    lines = {}
    for row in document["rows"]:
        ratio = row.get("ratios", {}).get(peer)
        lines[f"`{row['head']}`"] = [_seconds(row), f"{ratio:.2f}" if ratio else "—"]
    return "\n\n".join(
        [
            grid("head", ["seconds a step", f"of `{peer}`"], lines),
            f"One seed, {settings['batch']} texts of {settings['length']} tokens, an encoder of "
            f"{encoder['num_hidden_layers']} layers, {encoder['hidden_size']} wide, trained with its head; "
            f"medians of {settings['repeats']} rounds in which all take turns. {machine(document)}, "
            f"{versions(document)} {command(document)}",
        ]
    )


def _seconds(row: Row) -> str:
    return f"{row['median_s']:.3g}" if "median_s" in row else status(row)
