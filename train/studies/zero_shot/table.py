"""The tables of a zero-shot study, in Markdown."""

from collections.abc import Callable, Mapping
from typing import Any

from train.studies.tables import percent


def table(record: Mapping[str, Any]) -> str:
    """Accuracy, agreement and divergence by variant and set of layers, then what it costs.

    Args:
        record: from `study`.

    Returns:
        Four tables with a heading each, and a paragraph on how they were measured.
    """
    data, device, versions = record["data"], record["device"], record["versions"]
    short = record["lengths"][0]
    base = f"softmax: {100 * record['softmax']['accuracy']:.2f}"
    seeds = ", ".join(map(str, record["seeds"]))
    return "\n".join(
        [
            *_grid(record, f"Accuracy, percent ({base})", lambda row: percent(row["accuracy"])),
            *_grid(record, "Same prediction as with softmax, percent", lambda row: percent(row["agreement"])),
            *_grid(record, "KL(attention ‖ softmax) a row, nats", lambda row: _nats(row["divergence"])),
            *_costs(record),
            f"{data['examples']:,} texts of {data['name']} ({data['part']} part), {data['tokens']:.0f} tokens on "
            f"average, padded to {' or '.join(map(str, record['lengths']))}; {record['model']['encoder']}, "
            f"{record['model']['layers']} layers, fine-tuned with softmax and then not trained any further. Random "
            f"features: mean ± standard deviation of seeds {seeds}, statistics from {record['calibration_texts']} "
            "training texts. Divergences are of the softmax model's own queries and keys in "
            f"{record['divergence_texts']} of the texts, averaged over rows, heads and the layers replaced. Times "
            "are of the whole forward pass, over those of softmax, medians of "
            f"{record['repeats']} rounds in turns: of {record['timed_texts']} texts of {short} tokens, of one longer "
            "text. Operations are those of the attention's matrix products. "
            f"{device['kind']}, jax {versions['jax']}, {record['date']}.",
        ]
    )


def _grid(record: Mapping[str, Any], title: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
    sets = list(dict.fromkeys(row["layers"] for row in record["rows"]))
    cells = {(row["variant"], row["layers"]): cell(row) for row in record["rows"]}
    names = list(dict.fromkeys(row["variant"] for row in record["rows"]))
    return [
        f"{title}:",
        "",
        f"| attention | {' | '.join(sets)} |",
        "|---" * (1 + len(sets)) + "|",
        *(f"| `{name}` | {' | '.join(cells.get((name, s), '') for s in sets)} |" for name in names),
        "",
    ]


def _costs(record: Mapping[str, Any]) -> list[str]:
    """One row a variant with all layers replaced."""
    every = {
        row["variant"]: row for row in record["rows"] if len(row["numbers"]) == record["model"]["layers"]
    }
    long: dict[tuple[str, int], Mapping[str, Any]] = {
        (row["variant"], row["length"]): row for row in record["long"]
    }
    lengths = list(dict.fromkeys(length for _, length in long))
    heads = [
        f"{what}, {n} tokens" for n in (record["lengths"][0], *lengths) for what in ("operations", "time")
    ]
    lines = []
    for name, row in every.items():
        cells = [_ratio(row["relative_flops"]), _ratio(row.get("relative_seconds"))]
        for length in lengths:
            at = long.get((name, length))
            cells += (
                ["", ""] if at is None else [_ratio(at["relative_flops"]), _ratio(at["relative_seconds"])]
            )
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "All layers replaced, over softmax:",
        "",
        f"| attention | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
        *lines,
        "",
    ]


def _nats(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    between = "" if value["spread"] is None else f" ± {value['spread']:.3f}"
    return f"{value['mean']:.3f}{between}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
