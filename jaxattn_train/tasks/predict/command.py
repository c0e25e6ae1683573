"""`jaxattn-train predict`: labels of new texts, by a trained classifier."""

import csv
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.data.lines import check_out, read_texts
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.predict.classifier import load
from jaxattn_train.tasks.shared.losses import probabilities


@dataclasses.dataclass(frozen=True)
class PredictConfig(Options, at_least={"batch_size": 1}):
    """Labels texts with a model that finetune or classify trained: from a file, or from standard input line by line.

    Texts are labelled as they come, --batch-size at a time; an empty one gives an empty line.
    """

    run: str
    """Run folder, such as runs/finetune-irony."""
    file: str | None = None
    """.txt with a text a line, or .tsv, .csv or .jsonl with a column of texts; - or nothing for standard input."""
    text_column: str | None = None
    """Name of that column; by default text."""
    out: str | None = None
    """Write a .csv with text, prediction and probabilities, in place of printing."""
    step: int | None = None
    """Which checkpoint; by default the best on the validation texts."""
    model_seed: int | None = None
    """Which of the trained seeds; by default the first."""
    batch_size: int = 32
    """Texts at a time."""

    def _check(self) -> None:
        check_out(self.out, self.file)


def main(argv: Sequence[str]) -> int:
    """Parses the flags, labels the texts and prints or writes them."""
    config = parse(PredictConfig, argv, command="predict")
    lines = read_texts(config.file, config.text_column)
    first = next(lines)  # what is wrong with the file shows before the model is loaded
    trained = load(config.run, step=config.step, model_seed=config.model_seed)
    count = cut = 0
    with ExitStack() as stack:
        write = _writer(config.out, trained.classes, stack)
        texts = itertools.chain([first], lines)
        while piece := list(itertools.islice(texts, config.batch_size)):
            full = [line for line in piece if line.text.strip()]
            found: Iterator[tuple[str, Sequence[float]]] = iter(())
            if full:
                logits, more = trained.logits(
                    [line.text for line in full],
                    names=[line.name for line in full],
                    batch_size=config.batch_size,
                )
                chances = probabilities(trained.loss, logits)
                found, cut = zip(trained.labels(chances), chances, strict=True), cut + more
            for line in piece:
                write(line.text, *(next(found) if line.text.strip() else ("", ())))
            count += len(piece)
    if cut:
        note = f"note: {cut:,} of {count:,} texts are longer than {trained.max_length} tokens and were cut"
        print(note, file=sys.stderr)
    if config.out is not None:
        print(f"{count:,} texts in {config.out}")
    return 0


def _writer(out: str | None, classes: Sequence[str], stack: ExitStack) -> Any:
    """The function of (text, label, probabilities) that writes one row, to a .csv or to the terminal."""
    if out is None:

        def show(text: str, label: str, chances: Sequence[float]) -> None:
            text = " ".join(text.splitlines())  # of a table, whose cells may hold several
            shown = " ".join(f"{name}={p:.3f}" for name, p in zip(classes, chances, strict=False))
            print(f"{label}\t{shown}\t{text}" if len(chances) else "", flush=True)

        return show
    try:
        file = stack.enter_context(Path(out).open("w", newline="", encoding="utf-8"))  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}.") from error
    writer = csv.writer(file)
    writer.writerow(["text", "prediction", *(f"p_{name}" for name in classes)])

    def write(text: str, label: str, chances: Sequence[float]) -> None:
        writer.writerow([text, label, *([f"{p:.4f}" for p in chances] or [""] * len(classes))])

    return write
