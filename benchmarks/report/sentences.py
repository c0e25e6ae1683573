"""The table of sentence encoders."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import command, figures, grid, machine, status, versions


def section(document: Mapping[str, Any]) -> str:
    """Texts a second, a line for each library and a column for each set of texts."""
    rows, settings = document["rows"], document["settings"]
    found = {(row["library"], row["texts"]): row for row in rows}
    sets = list(dict.fromkeys(row["texts"] for row in rows))

    def cell(row: Row) -> str:
        return figures(row["texts_per_second"]) if "texts_per_second" in row else status(row)

    lines = {
        library: [cell(found[library, texts]) for texts in sets]
        for library in dict.fromkeys(row["library"] for row in rows)
    }
    differences = [row["largest_difference"] for row in rows if "largest_difference" in row]
    largest = f" Embeddings differ by at most {max(differences):.1e}." if differences else ""
    return "\n\n".join(
        [
            grid("texts a second", sets, lines),
            f"{settings['model']}, {settings['count']} test texts of each set with their tokenisation, batches of "
            f"{settings['batch']}, compiled before; medians of {settings['repeats']} rounds in which both take "
            f"turns.{largest} {machine(document)}, {versions(document)} {command(document)}",
        ]
    )
