"""`jaxattn-train predict`: labels of new texts, by a fine-tuned encoder."""

import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.tables import read_table
from jaxattn_train.data.token_examples import token_ids
from jaxattn_train.engine.functional import Functional, Params, compute_dtype
from jaxattn_train.engine.trained import load_trained
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.finetune.command import ENCODER_FOLDER
from jaxattn_train.tasks.finetune.config import FinetuneModel
from jaxattn_train.tasks.finetune.model import text_classifier
from jaxattn_train.tasks.shared.losses import num_outputs, probabilities
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.scores import predictions


@dataclasses.dataclass(frozen=True)
class PredictConfig(Options, at_least={"batch_size": 1}):
    """Labels texts with a model that `finetune` trained: from a file, or from standard input, one text a line."""

    run: str
    """Run folder, such as runs/finetune-irony."""
    file: str | None = None
    """.txt with a text a line, or .tsv, .csv or .jsonl with a column of texts; - or nothing for standard input."""
    text_column: str | None = None
    """Name of that column; by default text."""
    out: str | None = None
    """Write a .csv with text, prediction and probabilities, in place of printing."""
    step: int | None = None
    """Which checkpoint; by default the best by validation macro-F1."""
    model_seed: int | None = None
    """Which of the trained seeds; by default the first."""
    batch_size: int = 32
    """Texts at a time."""


def main(argv: Sequence[str]) -> int:
    """Parses the flags, labels the texts and prints or writes them."""
    config = parse(PredictConfig, argv, command="predict")
    texts, names = read_texts(config.file, config.text_column)
    trained = load(config.run, step=config.step, model_seed=config.model_seed)
    chances, cut = trained.predict(texts, names=names, batch_size=config.batch_size)
    if cut:
        note = (
            f"note: {cut:,} of {len(texts):,} texts are longer than {trained.max_length} tokens and were cut"
        )
        print(note, file=sys.stderr)
    labels = trained.labels(chances)
    if config.out is None:
        for text, label, row in zip(texts, labels, chances, strict=True):
            shown = " ".join(f"{name}={p:.3f}" for name, p in zip(trained.classes, row, strict=True))
            print(f"{label}\t{shown}\t{text}")
        return 0
    _write(Path(config.out), texts, labels, chances, trained.classes)
    print(f"{len(texts):,} texts in {config.out}")
    return 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A fine-tuned classifier with its tokenizer."""

    encoder: Any
    functional: Functional
    params: Params
    classes: tuple[str, ...]
    loss: LossKind
    max_length: int

    def predict(
        self, texts: Sequence[str], *, names: Sequence[str] | None = None, batch_size: int = 32
    ) -> tuple[np.ndarray, int]:
        """Probabilities (texts, classes), and how many texts were cut at `max_length`.

        Raises:
            UserError: an empty text.
        """
        names = [f"the text {i}" for i in range(1, len(texts) + 1)] if names is None else names
        ids, cut = token_ids(self.encoder, texts, self.max_length, names=names)
        part = Sequences.of(ids, [0] * len(ids))
        run = jax.jit(lambda params, tokens, mask: self.functional.apply(params, tokens, token_mask=mask))
        found = np.empty((len(part), len(self.classes)))
        # Batches as in training: few lengths, so few programs.
        batch_size = max(1, min(batch_size, len(part)))
        buckets = Buckets(part.lengths, max_length=self.max_length, batch_size=batch_size)
        for chosen in buckets.in_order():
            rows = np.resize(chosen.rows, batch_size)
            padded = part.padded(rows, chosen.length)
            mask = np.arange(chosen.length) < padded.lengths[:, None]
            logits = run(self.params, jnp.asarray(padded.tokens), jnp.asarray(mask))
            found[chosen.rows] = probabilities(self.loss, np.asarray(logits))[: len(chosen.rows)]
        return found, cut

    def labels(self, chances: np.ndarray) -> list[str]:
        """The name of the likeliest class of each row, or of all likely labels."""
        said = predictions(self.loss, chances)
        if self.loss != "multilabel":
            return [self.classes[i] for i in said]
        return [
            ",".join(name for name, there in zip(self.classes, row, strict=True) if there) for row in said
        ]


def load(path: str, *, step: int | None = None, model_seed: int | None = None) -> Trained:
    """The model of a run of `finetune`; all of it is in the run's folder.

    Args:
        path: run folder.
        step: None for the best checkpoint by validation macro-F1.
        model_seed: one of the seeds that were trained; None for the first.

    Raises:
        UserError: no such folder, step or seed, or a folder of another kind of run.
        TrainingFailed: the checkpoint is damaged.
    """
    from flax import nnx

    from jaxattn.encoders.tokenizer import TextTokenizer
    from jaxattn.models import EncoderConfig, TextEncoder

    encoder: list[Any] = []

    def make(record: dict[str, Any]) -> Functional:
        task, fields = record["task"], record["config"]["model"]
        names = {field.name for field in dataclasses.fields(FinetuneModel)}
        if set(fields) != names:
            raise UserError(f"{path} is no run of `jaxattn-train finetune`.")
        model = FinetuneModel(**fields)
        folder = Path(path) / ENCODER_FOLDER
        try:
            config = EncoderConfig.from_folder(folder)
            # Shapes only: the values are in the checkpoint.
            bare = nnx.eval_shape(
                lambda: TextEncoder(config, dtype=compute_dtype(model.dtype), rngs=nnx.Rngs(0))
            )
            bare.tokenizer = TextTokenizer.load(folder)
        except (ValueError, OSError) as error:
            raise UserError(f"--run {path}: {error}") from error
        encoder.append(bare)
        return text_classifier(model, bare, num_outputs(task["loss"], len(task["classes"])))

    functional, params, record = load_trained(path, make, metric="val_f1", step=step, model_seed=model_seed)
    task = record["task"]
    return Trained(encoder[0], functional, params, tuple(task["classes"]), task["loss"], task["max_length"])


def read_texts(file: str | None, text_column: str | None) -> tuple[list[str], list[str]]:
    """The texts of a file or of standard input, and a name of each for error messages.

    Raises:
        UserError: a file that cannot be read, has no such column, or holds no text.
    """
    if file is not None and file != "-" and Path(file).suffix != ".txt":
        table = read_table(Path(file), text_column=text_column or "text", label_column=None)
        return table.texts, table.places
    if text_column is not None:
        raise UserError(f"--text-column is for tables; got it with {file or 'standard input'}.")
    source = "standard input" if file in (None, "-") else file
    try:
        # As bytes, because the locale decides how Python decodes standard input.
        content = sys.stdin.buffer.read() if file is None or file == "-" else Path(file).read_bytes()
        lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    except OSError as error:
        raise UserError(f"cannot read {source}: {error}.") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"line {line} of {source} must be UTF-8 text; got the byte 0x{content[error.start]:02x}. Convert it, for "
            "example from Latin-1 with iconv -f latin1 -t utf-8."
        ) from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{source} holds no text; give one a line.")
    return lines, [f"the line {i} of {source}" for i in range(1, len(lines) + 1)]


def _write(
    path: Path, texts: Sequence[str], labels: Sequence[str], chances: np.ndarray, classes: Sequence[str]
) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "prediction", *(f"p_{name}" for name in classes)])
            for text, label, row in zip(texts, labels, chances, strict=True):
                writer.writerow([text, label, *(f"{p:.4f}" for p in row)])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
