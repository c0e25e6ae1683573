"""`jaxattn-train report`: tables and plots of sweeps, beside published figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.engine import plots
from jaxattn_train.engine.metrics import clock, mean
from jaxattn_train.engine.provenance import over_seeds
from jaxattn_train.errors import UserError
from jaxattn_train.studies.runner import without
from jaxattn_train.studies.sweep.ledger import key, read
from jaxattn_train.studies.tables import cell, markdown, percent, renew
from jaxattn_train.tasks.lra.published import published

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in attention and seed only."""

    shared: dict[str, Any]
    """What they have in common."""
    rows: dict[str, dict[int, Record]]
    """Finished runs by attention and seed."""

    @property
    def name(self) -> str:
        """Task and preset."""
        return f"{self.shared['task']}-{self.shared['preset']}"


@dataclasses.dataclass(frozen=True)
class ReportOptions(Options):
    """Writes a table and plots of sweeps, beside published figures.

    The table has a row for each attention: test accuracy as mean ± standard deviation over seeds, seconds a step,
    training time and peak memory, beside the published accuracy of the same mechanism with 128 features. The plots
    are learning curves, and a heatmap of mean accuracies where pairs of component functions and weight matrices were
    swept.
    """

    sweep: tuple[Path, ...]
    """results.jsonl of sweeps, or their folders."""
    out: Path | None = None
    """Folder for report.md and plots; by default that of the first sweep."""
    tables: tuple[Path, ...] = ()
    """Markdown files in which to replace the table results:lra."""

    def _check(self) -> None:
        if not self.sweep:
            raise UserError("--sweep must be results of sweeps; got none.")


def main(argv: Sequence[str]) -> int:
    """Writes the table and the plots."""
    options = parse(ReportOptions, argv, command="report")
    groups, failed = collect(options.sweep)
    first = options.sweep[0]
    out = options.out or (first if first.is_dir() else first.parent)
    text = "\n\n".join(table(group) for group in groups)
    if failed:
        text += "\n\nFailed: " + "; ".join(
            f"`{r['attention']}` seed {r['seed']}: {r['message']}" for r in failed
        )
    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        path
        for i, group in enumerate(groups, 1)
        for path in (curves(group, out, i), *heatmaps(group, out, i))
    ]
    links = "".join(f"\n\n![{path.stem}]({path.name})" for path in pictures)
    (out / "report.md").write_text(f"{text}{links}\n", encoding="utf-8")
    print(text)
    print(f"\nwritten: {', '.join(map(str, [out / 'report.md', *pictures]))}")
    for path in options.tables:
        renew(path, text, name="lra")
    return 0


def collect(paths: Sequence[Path]) -> tuple[list[Group], list[Record]]:
    """Sorts the runs of sweeps into comparable groups; of a repeated run the last line counts.

    Args:
        paths: files of results, or their folders.

    Returns:
        The groups in order of appearance, and the failed runs.

    Raises:
        UserError: a file does not exist, no run is finished, or two files hold the same run.
    """
    groups: dict[str, Group] = {}
    failed: list[Record] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"--sweep must be results of sweeps; {path} does not exist.")
        for record in {key(record): record for record in read(path)}.values():
            if record["status"] == "failed":
                failed.append(record)
                continue
            shared = _shared(record)
            group = groups.setdefault(json.dumps(shared, sort_keys=True), Group(shared, {}))
            seeds = group.rows.setdefault(record["attention"], {})
            if record["seed"] in seeds:
                raise UserError(
                    f"--sweep was given {record['attention']} with seed {record['seed']} twice; again in {path}."
                )
            seeds[record["seed"]] = record
    if not groups:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}.")
    return list(groups.values()), failed


def _shared(record: Record) -> dict[str, Any]:
    config = record["config"]
    return {
        "task": config["task"],
        "preset": config["preset"],
        "model": without(config["model"], ["attention"]),
        "optimizer": config["optimizer"],
        # Not where the data came from.
        "data": without(config["data"], ("data_path", "data_cache", "workers")),
        **{name: record["data"][name] for name in ("examples", "notes")},
        **{name: record[name] for name in ("measured_on", "device", "versions")},
    }


def table(group: Group) -> str:
    """The Markdown table of a group."""
    shared = group.shared
    model, optimizer, sizes, device = (shared[name] for name in ("model", "optimizer", "examples", "device"))
    # Results from before there was `stratify` are without.
    stratified = ", stratified" if optimizer.get("stratify") else ""
    chosen = {name: value for name, value in shared["data"].items() if type(value) is int}
    data = "; ".join([*shared["notes"], *(f"{name.replace('_', ' ')} {n}" for name, n in chosen.items())])
    comparable = (
        "."
        if shared["preset"] == "paper"
        else "; the numbers here are of smaller or easier data and not comparable."
    )
    return markdown(
        [
            *(f"{shared['task']} ({shared['preset']})", "seeds", "accuracy", "published", "seconds a step"),
            *("time", "peak memory"),
        ],
        [_row(shared["task"], attention, list(seeds.values())) for attention, seeds in group.rows.items()],
        f"Per cent of {sizes[shared['measured_on']]:,} {shared['measured_on']} examples at the best checkpoint by "
        f"validation accuracy, mean ± standard deviation over seeds. {model['num_layers']} layers, "
        f"{model['features']} wide, {model['num_heads']} heads, {model['positions']} positions, "
        f"{model['pooling']} pooling; {optimizer['steps']:,} steps of {optimizer['batch_size']}{stratified}, rate "
        f"{optimizer['lr']:g}. {data}. {device['kind']}, jax {shared['versions']['jax']}. Published: arXiv "
        f"2405.15310, the set-up of `--preset paper`{comparable}",
    )


def _row(task: str, attention: str, records: Sequence[Record]) -> list[str]:
    peaks = {record["peak_memory"]["of"] for record in records}
    peak = max(record["peak_memory"]["bytes"] for record in records) / 2**20
    known = published(task).get(attention.removesuffix(":128"))
    return [
        f"`{attention}`",
        str(len(records)),
        percent(over_seeds([record["accuracy"]["mean"] for record in records])),
        "" if known is None else cell(known._asdict(), digits=2),
        f"{mean([record['seconds_per_step'] for record in records]):.3f}",
        clock(mean([record["seconds"] for record in records])),
        f"{peak:,.0f} MiB ({', '.join(sorted(peaks))})",
    ]


def curves(group: Group, out: Path, number: int) -> Path:
    """Plots the validation accuracy of every attention against steps: mean and range over its seeds."""
    lines: dict[str, dict[int, list[float]]] = {}
    for attention, seeds in group.rows.items():
        points = lines[attention] = {}
        for record in seeds.values():
            for evaluation in record["evaluations"]:
                points.setdefault(evaluation["step"], []).append(100 * evaluation["val_accuracy"])
    path = out / f"curves-{number}-{group.name}.png"
    plots.learning_curves(lines, path, title=group.name, ylabel="validation accuracy in per cent")
    return path


def heatmaps(group: Group, out: Path, number: int) -> list[Path]:
    """Plots the mean accuracy of pairs, one heatmap for each number of features and gate; none for one pair."""
    grids: dict[str, dict[tuple[str, str], float]] = {}
    for attention, seeds in group.rows.items():
        name, _, rest = attention.partition(":")
        pair, _, size = rest.partition(":")
        component, dash, weights = pair.partition("-")
        if name == "features" and dash:
            values = [100 * record["accuracy"]["mean"] for record in seeds.values()]
            grids.setdefault(size, {})[component, weights] = mean(values)
    written = []
    for size, cells in grids.items():
        if len(cells) > 1:
            path = out / f"heatmap-{number}-{group.name}-{size.replace(':', '-') or 'default'}.png"
            title = f"{group.name}, M = {size or 128}: accuracy in per cent"
            written.append(_draw(cells, path, title))
    return written


def _draw(cells: Mapping[tuple[str, str], float], path: Path, title: str) -> Path:
    rows, columns = (list(dict.fromkeys(pair[i] for pair in cells)) for i in (0, 1))
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    plots.heatmap(values, rows, columns, path, title=title, axes=("component function", "weight matrix"))
    return path
