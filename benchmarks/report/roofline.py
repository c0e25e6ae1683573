"""Predicted times of compiled programs: the bytes they move and the FLOPs of their products at a device's peaks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import grid, two_digits
from benchmarks.suites.compiled import peaks

SOFTMAX = "softmax"
# Of the products in its grid, what a causal mask leaves: the rest is skipped where it runs.
CAUSAL_SHARE = {"splash": 0.5}


def section(document: Mapping[str, Any]) -> str:
    """A table of kernels by tokens, and from where on each is predicted to take less time than softmax."""
    rows = [row for row in document["rows"] if row["status"] == "ok"]
    lengths = sorted({row["tokens"] for row in rows})
    by_kernel = {
        name: {row["tokens"]: row for row in rows if row["kernel"] == name}
        for name in dict.fromkeys(row["kernel"] for row in rows)
    }
    lines = {
        f"`{name}`, {next(iter(found.values()))['implementation']}": [
            _cell(found[length]) if length in found else "" for length in lengths
        ]
        for name, found in by_kernel.items()
    }
    chip = peaks(rows[0]["target"])
    title = (
        f"A prediction, not a measurement: milliseconds of forward + backward, causal, on one {rows[0]['target']} at "
        f"its published {chip.flops / 1e12:.0f} TFLOP/s and {chip.bandwidth / 1e9:.0f} GB/s, whichever takes longer."
    )
    table = grid("tokens", [f"{length:,}" for length in lengths], lines)
    softmax = {length: predicted_ms(row) for length, row in by_kernel.get(SOFTMAX, {}).items()}
    crossings = [
        f"`{name}` is predicted to take less time than softmax {_crossing(softmax, found)}."
        for name, found in by_kernel.items()
        if name != SOFTMAX
    ]
    return "\n\n".join([title, table, " ".join(crossings)])


def predicted_ms(row: Row) -> float:
    """The roofline time of a program."""
    return 1e3 * max(_seconds(row))


def _seconds(row: Row) -> tuple[float, float]:
    """(of its FLOPs, of its bytes)."""
    chip = peaks(row["target"])
    share = CAUSAL_SHARE.get(row["implementation"], 1.0) if row["causal"] else 1.0
    return share * row["flops"] / chip.flops, row["bytes"] / chip.bandwidth


def _cell(row: Row) -> str:
    flops, moved = _seconds(row)
    return f"{two_digits(predicted_ms(row))} ({'FLOPs' if flops > moved else 'bytes'})"


def _crossing(softmax: Mapping[int, float], found: Mapping[int, Row]) -> str:
    """From which length on, between the last two lengths where the order changes, in log space."""
    lengths = sorted(set(softmax) & set(found))
    gain = [math.log(softmax[length] / predicted_ms(found[length])) for length in lengths]
    return _from_where(lengths, gain)


def _from_where(lengths: Sequence[int], gain: Sequence[float]) -> str:
    behind = [i for i, x in enumerate(gain) if x <= 0]
    if not behind:
        return f"from {lengths[0]:,} tokens on or earlier"
    last = behind[-1]
    if last == len(gain) - 1:
        return f"at none of these lengths up to {lengths[-1]:,}"
    part = -gain[last] / (gain[last + 1] - gain[last])
    length = math.exp(math.log(lengths[last]) + part * math.log(lengths[last + 1] / lengths[last]))
    return f"from about {float(f'{length:.1g}'):,.0f} tokens on"
