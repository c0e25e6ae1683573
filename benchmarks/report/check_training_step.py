"""The promise about training steps on a CPU: random features at 4,096 tokens take a third of softmax's time."""

from collections.abc import Iterator, Mapping
from typing import Any

LENGTH, BOUND = 4096, 1 / 3


def judge(document: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """(what was promised and found, whether it holds)."""
    if document["provenance"]["platform"] != "cpu":
        return
    for row in document["rows"]:
        ratio = row.get("ratios", {}).get("softmax")
        if ratio is not None and row["attention"].startswith("features:") and row["length"] >= LENGTH:
            text = f"{row['attention']}, T {row['length']}: {ratio:.3g} of the time of softmax (at most {BOUND:.3g})"
            yield text, ratio <= BOUND
