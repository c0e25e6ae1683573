"""A trained text classifier, of `finetune` or `classify`, with what it takes to read new texts."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxattn_train.data.batches import Batch, make_batch
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.text_examples import word_ids
from jaxattn_train.data.token_examples import token_ids
from jaxattn_train.data.trees import Trees, common_shapes
from jaxattn_train.data.words import Vocabulary
from jaxattn_train.engine.functional import Functional, Params, compute_dtype
from jaxattn_train.engine.trained import load_trained
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.classify.config import ClassifyConfig, ClassifyData, ClassifyModel
from jaxattn_train.tasks.finetune.command import ENCODER_FOLDER
from jaxattn_train.tasks.finetune.config import FinetuneModel
from jaxattn_train.tasks.finetune.model import text_classifier
from jaxattn_train.tasks.shared.losses import num_outputs, probabilities
from jaxattn_train.tasks.shared.model import sequence_classifier
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.scores import predictions


class Encoded(NamedTuple):
    """Texts as the model reads them."""

    ids: Sequence[np.ndarray]
    lengths: Sequence[Any] | None
    """Nested lengths of their trees; None without trees."""
    cut: int
    """How many were cut."""


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained text classifier.

    Examples:
        classifier = load("runs/finetune-mails")
        classifier.labels(classifier.predict(["How do I return it?"]))
    """

    functional: Functional
    params: Params
    encode: Callable[[Sequence[str], Sequence[str]], Encoded]
    """(texts, their names in error messages) -> what the model reads."""
    record: dict[str, Any]
    """Of the checkpoint: the run's configuration and its task."""
    encoder: Any = None
    """The pretrained encoder, without its weights; None in a run of `classify`."""
    thresholds: np.ndarray | None = None
    """(labels,), where a text may have several; None for 0.5."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.record["task"]["classes"])

    @property
    def loss(self) -> LossKind:
        """Which it was trained with."""
        return self.record["task"].get("loss", "softmax")

    @property
    def max_length(self) -> int:
        """Longer texts are cut."""
        return self.record["task"]["max_length"]

    @property
    def separator(self) -> str | None:
        """Between several labels of a text; None where there is one."""
        return self.record["task"].get("separator")

    @functools.cached_property
    def _run(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda params, tokens, **inputs: self.functional.apply(params, tokens, **inputs))

    def logits(
        self, texts: Sequence[str], *, names: Sequence[str] | None = None, batch_size: int = 32
    ) -> tuple[np.ndarray, int]:
        """Logits (texts, outputs), and how many texts were cut at `max_length`.

        Raises:
            UserError: an empty text.
        """
        names = [f"the text {i}" for i in range(1, len(texts) + 1)] if names is None else names
        encoded = self.encode(texts, names)
        # Few shapes: powers of two where there are fewer texts.
        batch_size = min(batch_size, 1 << (len(texts) - 1).bit_length())
        found = np.empty((len(texts), num_outputs(self.loss, len(self.classes))))
        for rows, batch in _batches(encoded, self.max_length, batch_size):
            logits = self._run(self.params, batch["tokens"], token_mask=batch["mask"], tree=batch["tree"])
            found[rows] = np.asarray(logits)[: len(rows)]
        return found, encoded.cut

    def predict(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Probabilities (texts, classes)."""
        return probabilities(self.loss, self.logits(texts, batch_size=batch_size)[0])

    def module(self) -> Any:
        """The model as a Flax module: a `TextClassifier` with its labels, or a `SequenceClassifier`."""
        module = self.functional.module(self.params)
        if self.encoder is not None:
            module.labels, module.loss = self.classes, self.loss
        return module

    def labels(self, chances: np.ndarray) -> list[str]:
        """The name of the likeliest class of each row, or of all likely labels."""
        said = predictions(self.loss, chances, self.thresholds)
        if self.loss != "multilabel":
            return [self.classes[i] for i in said]
        return [
            (self.separator or ",").join(c for c, there in zip(self.classes, row, strict=True) if there)
            for row in said
        ]


def load(path: str, *, step: int | None = None, model_seed: int | None = None) -> Classifier:
    """The model of a run; all of it is in the run's folder.

    Args:
        path: run folder.
        step: None for the best checkpoint on the validation texts.
        model_seed: one of the seeds that were trained; None for the first.

    Raises:
        UserError: no such folder, step or seed, or a folder of another kind of run.
        TrainingFailed: the checkpoint is damaged.
    """
    parts: dict[str, Any] = {}

    def make(record: dict[str, Any]) -> Functional:
        kinds = {"loss": _finetuned, "words": _from_scratch}
        kind = next((kind for name, kind in kinds.items() if name in record.get("task", {})), None)
        if kind is None:
            raise UserError(f"{path} is no run of finetune or classify.")
        functional, more = kind(Path(path), record)
        parts.update(more)
        return functional

    functional, params, record = load_trained(path, make, step=step, model_seed=model_seed)
    seed = record["seeds"].index(record["seeds"][0] if model_seed is None else model_seed)
    return Classifier(
        functional, params, record=record, thresholds=_thresholds(Path(path), step, seed), **parts
    )


def _finetuned(path: Path, record: dict[str, Any]) -> tuple[Functional, dict[str, Any]]:
    from flax import nnx

    from jaxattn.encoders.tokenizer import TextTokenizer
    from jaxattn.models import EncoderConfig, TextEncoder

    task, model = record["task"], FinetuneModel(**record["config"]["model"])
    folder = path / ENCODER_FOLDER
    try:
        config = EncoderConfig.from_folder(folder)
        # Shapes only: the values are in the checkpoint.
        encoder = nnx.eval_shape(
            lambda: TextEncoder(config, dtype=compute_dtype(model.dtype), rngs=nnx.Rngs(0))
        )
        encoder.tokenizer = TextTokenizer.load(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"--run {path}: {error}") from error

    def encode(texts: Sequence[str], names: Sequence[str]) -> Encoded:
        ids, cut = token_ids(encoder, texts, task["max_length"], names=names)
        return Encoded(ids, None, cut)

    functional = text_classifier(model, encoder, num_outputs(task["loss"], len(task["classes"])))
    return functional, {"encode": encode, "encoder": encoder}


def _from_scratch(path: Path, record: dict[str, Any]) -> tuple[Functional, dict[str, Any]]:
    task, settings = record["task"], record["config"]
    config = ClassifyConfig(model=ClassifyModel.of_record(record), data=ClassifyData(**settings["data"]))
    vocabulary, max_branching = Vocabulary(task["words"]), config.max_branching()

    def encode(texts: Sequence[str], names: Sequence[str]) -> Encoded:
        return Encoded(*word_ids(texts, vocabulary, task["max_length"], max_branching))

    _, batch = next(_batches(encode(["a text"], []), task["max_length"], 1))
    none = Sequences.of([], [])
    sizes = ClassificationData(
        "", tuple(task["classes"]), len(vocabulary), task["max_length"], none, none, None
    )
    example = jax.tree.map(lambda x: x[None], batch)
    return sequence_classifier(config, sizes, example), {"encode": encode}


def _batches(encoded: Encoded, max_length: int, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Numbers of texts, and the batch that begins with them; short ones first."""
    part = Sequences.of(encoded.ids, [0] * len(encoded.ids))
    trees, kinds = None, None
    if encoded.lengths is not None:
        shapes = common_shapes({"new": encoded.lengths}, max_length)
        trees, kinds = Trees(encoded.lengths, shapes.of, keep=False), shapes.kinds["new"]
    buckets = Buckets(part.lengths, max_length=max_length, batch_size=batch_size, kinds=kinds)
    for chosen in buckets.in_order():
        yield chosen.rows, make_batch(part, trees, chosen, batch_size)


def _thresholds(path: Path, step: int | None, seed: int) -> np.ndarray | None:
    """Those of a finished run's best checkpoint."""
    file = path / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    if "thresholds" not in summary or step not in (None, summary["best_step"]):
        return None
    return np.array(summary["thresholds"][seed])
