"""`jaxattn-train evaluate`: scores of a trained classifier on a file of labelled texts."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.tables import read_table, split_labels
from jaxattn_train.data.text_examples import check_labels
from jaxattn_train.engine.provenance import over_seeds
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.predict.classifier import load
from jaxattn_train.tasks.shared.losses import probabilities
from jaxattn_train.tasks.shared.report import EVALUATIONS, Measured, write_predictions
from jaxattn_train.tasks.shared.scores import confusion, listed, predictions, scores


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Options, at_least={"batch_size": 1}):
    """Scores a model that finetune or classify trained on labelled texts, as the report of its run does."""

    run: str
    """Run folder, such as runs/finetune-mails."""
    test_file: str
    """.tsv, .csv or .jsonl with a text and a label, or labels, in each row."""
    text_column: str | None = None
    """Name of the column of texts; by default as in the run."""
    label_column: str | None = None
    """Name of the column of labels; by default as in the run."""
    label_columns: tuple[str, ...] | None = None
    """Names of columns of 0 and 1, one for each label; by default as in the run."""
    out: str | None = None
    """Folder for scores, predictions and confusion matrix; by default RUN/evaluations/FILE."""
    step: int | None = None
    """Which checkpoint; by default the best on the validation texts."""
    batch_size: int = 32
    """Texts at a time."""

    def _check(self) -> None:
        if self.label_column is not None and self.label_columns is not None:
            raise UserError("--label-columns is in place of --label-column; got both.")


def main(argv: Sequence[str]) -> int:
    """Parses the flags, scores every trained seed, prints the scores and writes them with the predictions."""
    config = parse(EvaluateConfig, argv, command="evaluate")
    first = load(config.run, step=config.step)
    settings, task, seeds = first.record["config"]["data"], first.record["task"], first.record["seeds"]
    given = {name: getattr(config, name) or settings.get(name) for name in ("text_column", "label_column")}
    columns = config.label_columns
    if columns is None and config.label_column is None:
        columns = settings.get("label_columns")
    table = read_table(
        Path(config.test_file),
        text_column=given["text_column"] or "text",
        label_column=given["label_column"] or "label",
        label_columns=columns or (),
        label_separator=first.separator,
    )
    rows = [split_labels(label, first.separator) for label in table.labels]
    check_labels("test", table, rows, task["labels"])
    labels = np.array([[label in row for label in task["labels"]] for row in rows], np.int32)
    labels = labels if first.loss == "multilabel" else labels.argmax(axis=1)

    models = [first, *(load(config.run, step=config.step, model_seed=seed) for seed in seeds[1:])]
    found = [model.logits(table.texts, names=table.places, batch_size=config.batch_size) for model in models]
    logits = np.stack([one for one, _ in found])
    thresholds = None if first.thresholds is None else np.array([model.thresholds for model in models])
    numbers = scores(first.loss, logits, labels, thresholds)
    chances = probabilities(first.loss, logits)
    measured = Measured(
        Path(config.test_file).name,
        Sequences.of([np.zeros(0, np.int32)] * len(labels), labels),
        predictions(first.loss, chances, thresholds),
        chances,
        first.classes,
        first.separator or ",",
    )
    name = re.sub(r"(\.\w+)(\.gz|\.xz)?$", "", Path(config.test_file).name)
    out = Path(config.out or Path(config.run) / EVALUATIONS / name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}.") from error
    write_predictions(out, measured, seeds, first.loss, table.ids, table.texts)
    counts = confusion(first.loss, measured.predicted, labels, len(first.classes))
    summary = {
        "run": config.run,
        "test_file": config.test_file,
        "texts": len(labels),
        "cut": found[0][1],
        "classes": list(first.classes),
        **{name: over_seeds(values) for name, values in numbers.items()},
        "confusion": counts.tolist(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{len(labels):,} texts of {config.test_file}: {listed(numbers)}")
    print(f"files: confusion.png, predictions.csv, summary.json in {out}")
    return 0
