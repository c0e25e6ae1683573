"""What `classify` can be told: frozen dataclasses whose field docstrings are the text of --help."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from train.cli.flags import check_at_least, check_model, check_training, parse_with_presets
from train.errors import UserError
from train.tasks.charlm.config import OptimizerConfig, RunConfig

DEFAULT_BRANCHING = 32


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The model."""

    attention: str = "softmax"
    """Mechanism: softmax, tree (over each text's own paragraphs, sentences and words; also tree:given:noself and
    tree:given:bias=learned), tree:64x16 (uniform), lags:8, features:oprf-orf:128; each with
    +gate=running|prefix|none|sequence."""
    positions: str = "learned"
    """none, learned, sinusoidal, rotary, morlet or morlet:learned."""
    pooling: Literal["mean", "max", "cls", "attention"] = "mean"
    """How a text's vectors become one: their mean or maximum, the first one, or a mean with learned weights."""
    qk_norm: float | None = None
    """Normalise queries and keys to this root mean square at the start (a learned gain); good for random features."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; must divide --features."""
    features: int = 64
    """Width of the residual stream."""
    dropout: float = 0.1
    """Probability of dropping an activation while training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The texts."""

    dataset: Literal["sst2", "imdb", "files"] = "sst2"
    """sst2 and imdb are downloaded once and checked; files are yours."""
    data_path: str | None = None
    """Where sst2 or imdb lies, instead of JAXATTN_DATA, the cache or a download."""
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
    max_length: int = 64
    """Words of a text at most; longer texts are cut, and their number is printed."""
    vocabulary: int = 10_000
    """Word ids, the most frequent words of the training texts; all others are one unknown word."""
    max_branching: int | None = None
    """With --attention tree: the largest family; longer sentences and paragraphs are cut in parts. By default 32."""


@dataclasses.dataclass(frozen=True)
class CadenceConfig:
    """What is measured, how often."""

    eval_every: int = 200
    """Steps between evaluations on all validation data; each is followed by a checkpoint."""
    log_every: int = 20
    """Steps between metric records."""


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """What the training of any sequence classifier can be told."""

    model: ClassifierConfig = ClassifierConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: CadenceConfig = CadenceConfig()
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def seeds(self) -> tuple[int, ...]:
        """The seeds that train at once."""
        return tuple(range(self.run.seed, self.run.seed + self.run.seeds))

    def out(self) -> str:
        """The run folder."""
        raise NotImplementedError("a subclass names the folder")

    def identity(self) -> dict[str, Any]:
        """Everything but the data that changes the trained numbers: a run may only go on if all of it is equal."""
        fields = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.optimizer)}
        return fields | {"seed": self.run.seed, "seeds": self.run.seeds}


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(ClassificationConfig):
    """Trains a text classifier from scratch, keeps the best checkpoint by validation accuracy, and reports.

    Start with --preset sst2-quick or imdb-quick (minutes on two CPU cores), or sst2-study or imdb-study (for
    comparisons over seeds); any flag overrides the preset. Running the same command again resumes it. For texts of
    your own: --dataset files --train-file texts.csv.
    """

    preset: Literal["sst2-quick", "sst2-study", "imdb-quick", "imdb-study"] = "sst2-quick"
    """Which set of defaults to start from."""
    data: TextConfig = TextConfig()

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/classify-{self.preset}"

    def max_branching(self) -> int | None:
        """The largest family of the texts' trees; None where the model reads no trees."""
        name, *options = self.model.attention.partition("+")[0].strip().split(":")
        if name != "tree" or (options and options[0] not in ("", "given")):
            return None
        return self.data.max_branching or DEFAULT_BRANCHING


def _optimizer(steps: int, **more: Any) -> OptimizerConfig:
    base: dict[str, Any] = {"batch_size": 32, "lr": 2e-3, "warmup": 50, "beta2": 0.98, "weight_decay": 0.05}
    return OptimizerConfig(steps=steps, **(base | more))


PRESETS: dict[str, ClassifyConfig] = {
    "sst2-quick": ClassifyConfig(
        preset="sst2-quick",
        optimizer=_optimizer(800),
        evaluation=CadenceConfig(eval_every=200, log_every=20),
    ),
    "sst2-study": ClassifyConfig(
        preset="sst2-study",
        optimizer=_optimizer(3000, lr=1e-3, warmup=100),
        evaluation=CadenceConfig(eval_every=500, log_every=50),
    ),
    "imdb-quick": ClassifyConfig(
        preset="imdb-quick",
        model=ClassifierConfig(num_heads=2, features=32),
        data=TextConfig(dataset="imdb", max_length=256),
        optimizer=_optimizer(400, batch_size=16, lr=3e-3),
        evaluation=CadenceConfig(eval_every=200, log_every=20),
    ),
    "imdb-study": ClassifyConfig(
        preset="imdb-study",
        data=TextConfig(dataset="imdb", max_length=512, vocabulary=20_000),
        optimizer=_optimizer(1500, lr=1e-3, warmup=100),
        evaluation=CadenceConfig(eval_every=500, log_every=50),
    ),
}


def parse(argv: Sequence[str]) -> ClassifyConfig:
    """Reads the command line: the preset gives the defaults, the other flags override them.

    Args:
        argv: the words after `python -m train classify`.

    Returns:
        The checked configuration.

    Raises:
        UserError: for what makes no sense. Unknown flags and types exit with code 2 by themselves.

    Examples:
        >>> parse(["--preset", "imdb-quick", "--attention", "tree"]).max_branching()
        32
    """
    config = parse_with_presets(argv, PRESETS, prog="python -m train classify")
    check_model(config.model)
    check_training(config.optimizer, config.evaluation, config.run)
    check_at_least(
        {
            "--max-length": (config.data.max_length, 1),
            "--vocabulary": (config.data.vocabulary, 3),
            "--max-branching": (config.data.max_branching, 2),
        }
    )
    check_files(config.data)
    if config.data.max_branching is not None and config.max_branching() is None:
        raise UserError(
            f"--max-branching is for --attention tree, which reads each text's tree; got --attention "
            f"{config.model.attention}."
        )
    return config


def check_files(data: Any) -> None:
    """Raises unless the flags of the files of the user's own belong to --dataset and make sense."""
    own = {
        "--train-file": data.train_file,
        "--validation-file": data.validation_file,
        "--test-file": data.test_file,
        "--text-column": data.text_column,
        "--label-column": data.label_column,
        "--validation-share": data.validation_share,
    }
    if data.dataset != "files":
        for flag, value in own.items():
            if value is not None:
                raise UserError(f"{flag} is for --dataset files; got it with --dataset {data.dataset}.")
        return
    if data.train_file is None:
        raise UserError("--dataset files needs --train-file.")
    if data.data_path is not None:
        raise UserError("--data-path is for the named data sets; got it with --dataset files.")
    if data.validation_share is not None:
        if data.validation_file is not None:
            raise UserError("--validation-share is for runs without --validation-file; got both.")
        if not 0 < data.validation_share < 1:
            raise UserError(f"--validation-share must be between 0 and 1; got {data.validation_share}.")
