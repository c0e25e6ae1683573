"""Table of errors against float64, before and after."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.markdown import grid

_PLANS = {"accelerator": "as on an accelerator", "cpu": "as on a CPU"}
COLUMNS = {"out": "output", "query": "dq", "key": "dk", "value": "dv"}


def section(document: Mapping[str, Any]) -> str:
    """Errors in units of 10⁻³ (bfloat16) and 10⁻⁷ (float32), the first commit's → the last one's."""
    commits = list(dict.fromkeys(row["commit"] for row in document["rows"]))
    lines: dict[str, list[str]] = {}
    for row in document["rows"]:
        unit = 1e-3 if row["dtype"] == "bfloat16" else 1e-7
        mask, plan = "causal" if row["causal"] else "not causal", _PLANS[row["plan"]]
        where = f"`{row['kernel']}`, {mask}, {row['dtype']}, {plan}"
        cells = [f"{row['errors'][name] / unit:.2g}" for name in COLUMNS]
        before = lines.get(where)
        lines[where] = cells if before is None else [f"{a} → {b}" for a, b in zip(before, cells, strict=True)]
    sizes = ", ".join(f"{name} {value:,}" for name, value in document["settings"].items())
    return (
        f"Commits {' → '.join(commits)}; {sizes}; units of 10⁻³ for bfloat16 and 10⁻⁷ for float32.\n\n"
        + grid("kernel", list(COLUMNS.values()), lines)
    )
