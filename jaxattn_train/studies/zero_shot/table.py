"""The tables of a zero-shot study, in Markdown."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxattn_train.studies.tables import cell, markdown, percent

Row = Mapping[str, Any]


def table(record: Mapping[str, Any]) -> str:
    """Accuracy, agreement and divergence by variant and set of layers, then the cost.

    Args:
        record: from `study`.

    Returns:
        Four tables with a heading each, and a paragraph on how they were measured.
    """
    data, device, versions = record["data"], record["device"], record["versions"]
    accuracy = f"Accuracy, percent (softmax: {100 * record['softmax']['accuracy']:.2f})"
    note = (
        f"{data['examples']:,} texts of {data['name']} ({data['part']} part), {data['tokens']:.0f} tokens on "
        f"average, padded to {' or '.join(map(str, record['lengths']))}; {record['model']['encoder']}, "
        f"{record['model']['layers']} layers, fine-tuned with softmax and then not trained any further. Random "
        f"features: mean ± standard deviation of seeds {', '.join(map(str, record['seeds']))}, statistics from "
        f"{record['calibration_texts']} training texts. Divergences are of the softmax model's own queries and keys "
        f"in {record['divergence_texts']} of the texts, averaged over rows, heads and the layers replaced. Times "
        "are of the whole forward pass, over those of softmax, medians of "
        f"{record['repeats']} rounds in turns: of {record['timed_texts']} texts of {record['lengths'][0]} tokens, of "
        "one longer text. Operations are those of the attention's matrix products. "
        f"{device['kind']}, jax {versions['jax']}, {record['date']}."
    )
    tables = [
        *_grid(record, accuracy, lambda row: percent(row["accuracy"])),
        *_grid(record, "Same prediction as with softmax, percent", lambda row: percent(row["agreement"])),
        *_grid(record, "KL(attention ‖ softmax) a row, nats", lambda row: cell(row["divergence"])),
        *_costs(record),
    ]
    return "\n".join([*tables, note])


def _grid(record: Mapping[str, Any], title: str, entry: Callable[[Row], str]) -> list[str]:
    sets = list(dict.fromkeys(row["layers"] for row in record["rows"]))
    names = list(dict.fromkeys(row["variant"] for row in record["rows"]))
    entries = {(row["variant"], row["layers"]): entry(row) for row in record["rows"]}
    rows = [[f"`{name}`", *(entries.get((name, s), "") for s in sets)] for name in names]
    return [f"{title}:", "", markdown(["attention", *sets], rows, "").rstrip(), ""]


def _costs(record: Mapping[str, Any]) -> list[str]:
    """One row a variant with all layers replaced."""
    long: dict[tuple[str, int], Row] = {(row["variant"], row["length"]): row for row in record["long"]}
    lengths = list(dict.fromkeys(length for _, length in long))
    rows = [
        [
            f"`{row['variant']}`",
            *_ratios(row),
            *(c for n in lengths for c in _ratios(long.get((row["variant"], n)))),
        ]
        for row in record["rows"]
        if len(row["numbers"]) == record["model"]["layers"]
    ]
    if not rows:
        return []
    header = [
        f"{what}, {n} tokens" for n in (record["lengths"][0], *lengths) for what in ("operations", "time")
    ]
    return ["All layers replaced, over softmax:", "", markdown(["attention", *header], rows, "").rstrip(), ""]


def _ratios(row: Row | None) -> list[str]:
    values = (row or {}).get("relative_flops"), (row or {}).get("relative_seconds")
    return ["" if value is None else f"{value:.2f}" for value in values]
