"""What `finetune` can be told: frozen dataclasses whose field docstrings are the text of --help."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from train.cli.flags import check_at_least, check_training, parse_with_presets
from train.errors import UserError
from train.tasks.charlm.config import OptimizerConfig
from train.tasks.classify.config import CadenceConfig, ClassificationConfig, check_files

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclasses.dataclass(frozen=True)
class FinetuneModel:
    """The encoder and the head."""

    encoder: str = MINILM
    """A folder with config.json, model.safetensors and tokenizer.json, or a name on the Hugging Face hub."""
    head: Literal["inceptive", "cls", "mean"] = "inceptive"
    """inceptive; or the baselines: dropout and one layer on the [CLS] token, or on the mean of the tokens."""
    kernels: tuple[int, ...] = (2, 3, 5, 7)
    """Widths of the inceptive head's convolutions, in tokens."""
    filters: int = 32
    """Channels of each convolution."""
    normalization: Literal["none", "batch", "layer"] = "none"
    """Of these channels."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """After it."""
    convolution: bool = True
    """Without, it is the fair control: the same head on the hidden states alone."""
    head_attention: str = "softmax"
    """Attention of the inceptive head: none, softmax, tree:16x4, features:oprf-orf:64, lags:8; each with +gate."""
    head_heads: int = 8
    """Heads of that attention; must divide its width, hidden size + filters x kernels."""
    pooling: Literal["mean", "max", "cls", "attention"] = "mean"
    """How the inceptive head makes one vector of a text: mean, max, first token, or a mean with learned weights."""
    hidden_features: int = 512
    """Width of the inceptive head's layer before the logits."""
    dropout: float = 0.3
    """Of the head. The encoder's own dropout is in its config.json."""
    freeze_encoder: bool = False
    """Train the head alone."""
    attention: str | None = None
    """Put this mechanism into the encoder's layers: tree:64x16, features:oprf-orf:128, softmax+gate, lags:8."""
    attention_layers: tuple[int, ...] | None = None
    """With --attention: numbers of these layers, from 0; negative ones count from the end. By default all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""


INCEPTIVE_ONLY = (
    *("kernels", "filters", "normalization", "activation", "convolution", "head_attention", "head_heads"),
    *("pooling", "hidden_features"),
)


@dataclasses.dataclass(frozen=True)
class FinetuneData:
    """The texts."""

    dataset: Literal["irony", "emotion", "sst2", "files"] = "irony"
    """irony and emotion (TweetEval) and sst2 are downloaded once and checked; files are yours."""
    data_path: str | None = None
    """Where the data set lies, instead of JAXATTN_DATA, the cache or a download."""
    train_file: str | None = None
    """With --dataset files: .tsv, .csv or .jsonl with a text and a label in each row, also .gz or .xz."""
    validation_file: str | None = None
    """The same, to choose the best checkpoint by; without it a share of the training texts is kept for that."""
    test_file: str | None = None
    """The same, for the numbers at the end; without it they are of the validation texts."""
    text_column: str | None = None
    """Name of the column of texts in these files; by default text."""
    label_column: str | None = None
    """Name of the column of labels; by default label."""
    validation_share: float | None = None
    """Share of the training texts to keep where there is no --validation-file; by default 0.1."""
    max_length: int = 128
    """Tokens of a text at most; longer texts are cut, and their number is printed."""
    loss: Literal["softmax", "binary", "multilabel"] = "softmax"
    """softmax: one class of several. binary: one logit for two classes. multilabel: any number of labels a text."""
    label_separator: str | None = None
    """With --loss multilabel: what stands between the labels of a text; by default a comma."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes count as much as frequent ones."""


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizer(OptimizerConfig):
    """AdamW with warm-up, cosine decay to zero and clipping."""

    steps: int = 0
    """Updates in all; the cosine ends here. 0 for --epochs."""
    epochs: int = 4
    """Times that every training text is read, where --steps is not given."""
    batch_size: int = 32
    """Texts per update, over all devices and micro-batches."""
    lr: float = 5e-5
    """Peak learning rate of the encoder's last layer, and of the head unless --head-lr says another."""
    head_lr: float | None = None
    """Peak learning rate of the head."""
    layerwise_decay: float = 1.0
    """Each layer of the encoder learns this much slower than the next one; the embeddings slowest of all."""
    warmup: int = 40
    """Steps of linear warm-up from zero."""
    beta2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 1e-3
    """On matrices only; norms, biases and gate parameters are left alone."""


@dataclasses.dataclass(frozen=True)
class FinetuneCadence(CadenceConfig):
    """What is measured, how often."""

    eval_every: int = 0
    """Steps between evaluations on all validation data, each followed by a checkpoint; 0 for once an epoch."""
    patience: int | None = None
    """Stop after so many evaluations without a better macro-F1 (mean over seeds); by default never."""
    relevance_texts: int = 6
    """Texts whose tokens are coloured by their relevance in relevance.png; 0 for no picture."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(ClassificationConfig):
    """Fine-tunes a pretrained text encoder with a head, keeps the best checkpoint by validation macro-F1, reports.

    Start with --preset irony, emotion or sst2; any flag overrides the preset. Running the same command again resumes
    it. For texts of your own: --dataset files --train-file texts.csv. Then: python -m train predict --run RUN.
    """

    preset: Literal["irony", "emotion", "sst2"] = "irony"
    """Which set of defaults to start from."""
    model: FinetuneModel = FinetuneModel()  # type: ignore[assignment]
    data: FinetuneData = FinetuneData()
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    evaluation: FinetuneCadence = FinetuneCadence()

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/finetune-{self.preset}"

    def identity(self) -> dict[str, Any]:
        """Everything but the data that changes the trained numbers: a run may only go on if all of it is equal."""
        fields = super().identity() | {"loss": self.data.loss, "class_weights": self.data.class_weights}
        # A checkpoint gives tuples back as lists.
        return {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}

    def resolved(self, batches: int) -> "FinetuneConfig":
        """The configuration with numbers of steps in place of epochs.

        Args:
            batches: of an epoch.

        Raises:
            UserError: fewer steps than the warm-up has.
        """
        optimizer = dataclasses.replace(
            self.optimizer, steps=self.optimizer.steps or self.optimizer.epochs * batches
        )
        evaluation = dataclasses.replace(
            self.evaluation, eval_every=self.evaluation.eval_every or min(batches, optimizer.steps)
        )
        check_training(optimizer, evaluation, self.run)
        return dataclasses.replace(self, optimizer=optimizer, evaluation=evaluation)


PRESETS: dict[str, FinetuneConfig] = {
    "irony": FinetuneConfig(),
    "emotion": FinetuneConfig(preset="emotion", data=FinetuneData(dataset="emotion")),
    "sst2": FinetuneConfig(
        preset="sst2",
        data=FinetuneData(dataset="sst2", max_length=64),
        optimizer=FinetuneOptimizer(epochs=2, warmup=100),
        evaluation=FinetuneCadence(eval_every=500, log_every=50),
    ),
}


def parse(argv: Sequence[str]) -> FinetuneConfig:
    """Reads the command line: the preset gives the defaults, the other flags override them.

    Args:
        argv: the words after `python -m train finetune`.

    Returns:
        The checked configuration; `resolved` turns its epochs into steps.

    Raises:
        UserError: for what makes no sense. Unknown flags and types exit with code 2 by themselves.

    Examples:
        >>> parse(["--preset", "emotion", "--head", "cls"]).resolved(batches=102).optimizer.steps
        408
    """
    config = parse_with_presets(argv, PRESETS, prog="python -m train finetune")
    optimizer, evaluation, data = config.optimizer, config.evaluation, config.data
    given = {word.partition("=")[0] for word in argv}
    if config.optimizer.steps and "--epochs" in given:
        raise UserError("--steps and --epochs say the same thing; give one of them.")
    check_training(
        dataclasses.replace(optimizer, steps=optimizer.steps or optimizer.warmup + 1),
        dataclasses.replace(evaluation, eval_every=evaluation.eval_every or 1),
        config.run,
    )
    check_at_least(
        {
            "--steps": (optimizer.steps, 0),
            "--epochs": (optimizer.epochs, 1),
            "--eval-every": (evaluation.eval_every, 0),
            "--max-length": (data.max_length, 3),
            "--patience": (evaluation.patience, 1),
            "--relevance-texts": (evaluation.relevance_texts, 0),
        }
    )
    if not 0 < optimizer.layerwise_decay <= 1:
        raise UserError(f"--layerwise-decay must be above 0 and at most 1; got {optimizer.layerwise_decay}.")
    if optimizer.head_lr is not None and optimizer.head_lr <= 0:
        raise UserError(f"--head-lr must be positive; got {optimizer.head_lr}.")
    if data.label_separator is not None and data.loss != "multilabel":
        raise UserError(f"--label-separator is for --loss multilabel; got it with --loss {data.loss}.")
    if data.label_separator == "":
        raise UserError("--label-separator must not be empty.")
    check_files(data)
    _check_model(config.model, optimizer)
    return config


def _check_model(model: FinetuneModel, optimizer: FinetuneOptimizer) -> None:
    plain = FinetuneModel()
    for name in INCEPTIVE_ONLY:
        if model.head != "inceptive" and getattr(model, name) != getattr(plain, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for --head inceptive; got it with --head {model.head}."
            )
    for name in ("kernels", "filters", "normalization", "activation"):
        if not model.convolution and getattr(model, name) != getattr(plain, name):
            raise UserError(f"--{name} is for heads with convolutions; got it with --no-convolution.")
    if model.attention_layers is not None and model.attention is None:
        raise UserError("--attention-layers is for --attention, which says what to put into them.")
    if model.freeze_encoder and optimizer.layerwise_decay != 1:
        raise UserError("--layerwise-decay is for encoders that are trained; got it with --freeze-encoder.")
    if not 0 <= model.dropout < 1:
        raise UserError(f"--dropout must be in [0, 1); got {model.dropout}.")
