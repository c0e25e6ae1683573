"""Command-line options of finetune."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxattn_train.cli.options import (
    EvaluationOptions,
    OptimizerOptions,
    Options,
    TaskConfig,
    check_attention,
    check_dropout,
    flag,
)
from jaxattn_train.cli.parsing import parse_with_presets
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.shared.options import BRIEF, LossKind, TextOptions, imply_files

Preset = Literal["irony", "emotion", "emotion-pairs", "sst2"]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclasses.dataclass(frozen=True)
class FinetuneModel(Options):
    """The encoder and the head."""

    encoder: str = MINILM
    """A folder with config.json, model.safetensors and tokenizer.json, or a name on the Hugging Face hub."""
    head: Literal["inceptive", "cls", "mean", "published"] = "inceptive"
    """inceptive; or the baselines: dropout and a linear layer on the [CLS] token, or on the mean of the tokens; or
    published: the head that transformers has for this encoder, for files that it reads."""
    kernels: tuple[int, ...] = (2, 3, 5, 7)
    """Widths of the inceptive head's convolutions, in tokens."""
    filters: int = 32
    """Channels of each convolution."""
    normalization: Literal["none", "batch", "layer"] = "none"
    """Normalisation of these channels."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation after it."""
    convolution: bool = True
    """Without convolutions the head reads the hidden states alone, as a control."""
    head_attention: str = "softmax"
    """Attention of the inceptive head: none, or a mechanism, such as tree:16x4; listed below."""
    head_heads: int = 8
    """Heads of that attention; must divide its width, hidden size + filters x kernels."""
    pooling: Literal["mean", "max", "cls", "attention"] = "mean"
    """Pooling of the inceptive head: mean, maximum, first token, or a mean with learned weights."""
    hidden_features: int = 512
    """Width of the inceptive head's layer before the logits."""
    dropout: float = 0.3
    """Dropout rate of the head. The encoder's own is in its config.json."""
    freeze_encoder: bool = False
    """Train the head only."""
    attention: str | None = None
    """Replace the attention of the encoder's layers by a mechanism, such as features:oprf-orf:128; listed below."""
    attention_layers: tuple[int, ...] | None = None
    """With --attention: indices of these layers; negative ones count from the end. By default all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""

    def _check(self) -> None:
        default = FinetuneModel()

        def given(names: Sequence[str]) -> list[str]:
            return [flag(name) for name in names if getattr(self, name) != getattr(default, name)]

        if self.head != "inceptive" and (flags := given(INCEPTIVE_ONLY)):
            raise UserError(f"{flags[0]} is for --head inceptive; got it with --head {self.head}.")
        if not self.convolution and (flags := given(CONVOLUTION_ONLY)):
            raise UserError(f"{flags[0]} is for heads with convolutions; got it with --no-convolution.")
        if self.attention_layers is not None and self.attention is None:
            raise UserError("--attention-layers is for --attention, which names their mechanism.")
        check_dropout(self.dropout)


CONVOLUTION_ONLY = ("kernels", "filters", "normalization", "activation")
INCEPTIVE_ONLY = (
    *CONVOLUTION_ONLY,
    *("convolution", "head_attention", "head_heads", "pooling", "hidden_features"),
)


@dataclasses.dataclass(frozen=True)
class FinetuneData(TextOptions, at_least={"max_length": 3}):
    """The texts."""

    dataset: Literal["irony", "emotion", "emotion-pairs", "sst2", "files"] = "irony"
    """irony and emotion (TweetEval) and sst2 are downloaded once and checked; emotion-pairs are two tweets of emotion
    a text, with the labels of both; files are your own."""
    max_length: int = 128
    """Tokens of a text at most; longer texts are cut, and their number is printed."""
    loss: LossKind = "softmax"
    """softmax: one of several classes. binary: one logit for two classes. multilabel: any number of labels a text."""
    label_separator: str | None = None
    """With --loss multilabel: what separates the labels of a text; by default a comma."""
    label_columns: tuple[str, ...] | None = None
    """Names of columns of 0 and 1, one for each label, in place of --label-column; implies --loss multilabel."""

    def _check(self) -> None:
        super()._check()
        if self.label_separator is not None and self.loss != "multilabel":
            raise UserError(f"--label-separator is for --loss multilabel; got it with --loss {self.loss}.")
        if self.label_separator == "":
            raise UserError("--label-separator must not be empty.")
        if self.dataset == "emotion-pairs" and (
            self.loss != "multilabel" or self.label_separator is not None
        ):
            raise UserError(
                "--dataset emotion-pairs is for --loss multilabel, without --label-separator; --preset emotion-pairs "
                "sets both."
            )
        if self.label_columns is not None:
            if self.loss != "multilabel" or self.dataset != "files" or self.label_column is not None:
                raise UserError(
                    "--label-columns is for --loss multilabel, files of your own, and in place of --label-column."
                )
            if len(set(self.label_columns)) < max(2, len(self.label_columns)):
                raise UserError(
                    f"--label-columns must be two or more names; got {', '.join(self.label_columns)}."
                )

    @property
    def separator(self) -> str | None:
        """Between several labels of a text; None where there is one."""
        return (self.label_separator or ",") if self.loss == "multilabel" else None


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizer(OptimizerOptions, at_least={"steps": 0, "epochs": 1}):
    """AdamW with linear warm-up, cosine decay to zero and gradient clipping."""

    steps: int = 0
    """Updates in total; 0 for --epochs."""
    epochs: int = 4
    """Passes over the training texts, where --steps is not given."""
    batch_size: int = 32
    """Texts per update, over all devices and micro-batches."""
    lr: float = 5e-5
    """Peak learning rate of the encoder's last layer, and of the head without --head-lr."""
    head_lr: float | None = None
    """Peak learning rate of the head."""
    layerwise_decay: float = 1.0
    """Factor from the learning rate of each layer of the encoder to that of the layer below; the embeddings' is the
    smallest."""
    beta2: float = 0.999
    """Decay rate of the second moment."""
    weight_decay: float = 1e-3
    """On matrices only; norms, biases and gate parameters do not decay."""

    def _check(self) -> None:
        # Any warm-up may do where epochs decide on the steps.
        OptimizerOptions._check(self if self.steps else dataclasses.replace(self, steps=2**31))
        if not 0 < self.layerwise_decay <= 1:
            raise UserError(f"--layerwise-decay must be above 0 and at most 1; got {self.layerwise_decay}.")
        if self.head_lr is not None and self.head_lr <= 0:
            raise UserError(f"--head-lr must be positive; got {self.head_lr}.")


@dataclasses.dataclass(frozen=True)
class FinetuneEvaluation(EvaluationOptions, at_least={"eval_every": 0, "patience": 1, "relevance_texts": 0}):
    """What is measured, how often."""

    eval_every: int = 0
    """Steps between evaluations on the validation data, each followed by a checkpoint; 0 for once an epoch."""
    patience: int | None = None
    """Stop after so many evaluations without a better macro-F1 (mean over seeds); by default never."""
    relevance_texts: int = 6
    """Texts whose tokens are coloured by their relevance in relevance.png; 0 for no picture."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TaskConfig):
    """Fine-tunes a pretrained text encoder with a head, keeps the best checkpoint by validation macro-F1, reports.

    Start with --preset irony, emotion, emotion-pairs or sst2; any flag overrides the preset. The same command again
    resumes the run. For your own texts: --train-file texts.csv. Then: jaxattn-train predict --run RUN.
    """

    command: ClassVar[str] = "finetune"
    brief = (*BRIEF, "encoder", "head", "epochs")
    preset: Preset = "irony"
    """Which set of defaults to start from."""
    model: FinetuneModel = FinetuneModel()
    data: FinetuneData = FinetuneData()
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    evaluation: FinetuneEvaluation = FinetuneEvaluation(log_every=20)

    def identity(self) -> dict[str, Any]:
        """Everything but the texts that changes the trained numbers."""
        return super().identity() | {"loss": self.data.loss}

    def _check(self) -> None:
        if self.model.freeze_encoder and self.optimizer.layerwise_decay != 1:
            raise UserError(
                "--layerwise-decay is for encoders that are trained; got it with --freeze-encoder."
            )
        for name, without in (("attention", None), ("head_attention", "none")):
            if (spelling := getattr(self.model, name)) != without:
                check_attention(spelling, length=self.data.max_length, flag=flag(name))

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
        optimizer.check()
        return dataclasses.replace(self, optimizer=optimizer, evaluation=evaluation)


PRESETS: dict[str, FinetuneConfig] = {
    "irony": FinetuneConfig(),
    "emotion": FinetuneConfig(preset="emotion", data=FinetuneData(dataset="emotion")),
    "emotion-pairs": FinetuneConfig(
        preset="emotion-pairs", data=FinetuneData(dataset="emotion-pairs", loss="multilabel")
    ),
    "sst2": FinetuneConfig(
        preset="sst2",
        data=FinetuneData(dataset="sst2", max_length=64),
        optimizer=FinetuneOptimizer(epochs=2, warmup=100 / 4210),
        evaluation=FinetuneEvaluation(eval_every=500, log_every=50),
    ),
}


def parse(argv: Sequence[str]) -> FinetuneConfig:
    """The configuration of a command line; `resolved` turns its epochs into steps.

    Examples:
        >>> parse(["--preset", "emotion", "--head", "cls"]).resolved(batches=102).optimizer.steps
        408
    """
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    several = ["--loss", "multilabel"] if "--label-columns" in given and "--loss" not in given else []
    config = parse_with_presets([*imply_files(argv), *several], PRESETS, command="finetune")
    if config.optimizer.steps and "--epochs" in given:
        raise UserError("--steps and --epochs say the same thing; give one of them.")
    return config
