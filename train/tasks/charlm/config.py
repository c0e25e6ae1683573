"""What `charlm` can be told: frozen dataclasses whose field docstrings are the text of --help."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from train.cli.flags import check_at_least, check_model, check_training, parse_with_presets
from train.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model."""

    attention: str = "softmax+gate=running"
    """Mechanism: softmax, lags:8, features:oprf-orf:128 (random features: component-weights:number, optionally
    :redraw=1000 steps), tree:64x16 (a uniform tree: families of 64 tokens, then 16); each with
    +gate=running|prefix|none|sequence."""
    positions: str = "learned"
    """none, learned, sinusoidal, rotary, morlet or morlet:learned."""
    qk_norm: float | None = None
    """Normalise queries and keys to this root mean square at the start (a learned gain); good for random features."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; must divide --features."""
    features: int = 128
    """Width of the residual stream."""
    context_length: int = 128
    """Characters the model sees at once."""
    dropout: float = 0.0
    """Probability of dropping an activation while training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""
    allow_leak: bool = False
    """Allow gate=sequence in this causal model: it sees later characters (only to re-run the paper)."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text."""

    corpus: Literal["reference", "tinyshakespeare"] = "reference"
    """reference ships with Python and needs no network; tinyshakespeare is downloaded once and checked."""
    text_file: str | None = None
    """Train on this UTF-8 file instead of a named corpus."""
    data_path: str | None = None
    """Where tinyshakespeare.txt lies (file or folder), instead of JAXATTN_DATA, the cache or a download."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, cosine decay to zero and clipping."""

    steps: int = 1000
    """Updates in all; the cosine ends here."""
    batch_size: int = 16
    """Windows or texts per update, over all devices and micro-batches."""
    accumulate: int = 1
    """Micro-batches per update: the same gradient in less memory."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up from zero."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 0.1
    """On matrices only; norms, biases, gate and Morlet parameters are left alone."""
    clip: float = 1.0
    """Largest global norm of the gradient."""

    def shape(self) -> str:
        """How the rate falls after the warm-up: "cosine" or "linear"."""
        return "cosine"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, how often, and the report at the end."""

    eval_every: int = 100
    """Steps between evaluations; each is followed by a checkpoint."""
    eval_windows: int | None = 64
    """Evenly spaced validation windows per evaluation; None takes all. The report at the end takes all."""
    prefix_windows: int = 4
    """Windows on which the loss is also taken prefix by prefix, as generation sees them; 0 skips it."""
    log_every: int = 10
    """Steps between metric records."""
    prompt: str | None = None
    """Start of the text sampled at the end; by default "The ", or what the validation text starts with."""
    sample_tokens: int = 400
    """Characters to sample at the end; 0 skips it."""
    temperature: float = 0.8
    """Of that sample."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Seeds, files and devices."""

    seed: int = 0
    """First seed (parameters, data order, dropout)."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ..."""
    seed_mode: Literal["auto", "vmap", "sequential"] = "auto"
    """vmap trains the seeds side by side, sequential one after the other in each step (less memory); auto takes
    vmap on accelerators if it fits, sequential on CPU, where it is faster."""
    out: str | None = None
    """Run folder; by default runs/SUBCOMMAND-PRESET. The same command again resumes the run in it."""
    overwrite: bool = False
    """Start over in a folder that holds another run (its checkpoints are deleted)."""
    resume_step: int | None = None
    """Resume from this checkpoint instead of the newest; later ones are deleted."""
    keep: int = 3
    """Newest checkpoints to keep, next to the best on the validation data."""
    fsdp: int = 1
    """Devices over which the parameters are split; the others split the batch only."""
    distributed: bool = False
    """Call jax.distributed.initialize(): one process of several. Implied by JAX_COORDINATOR_ADDRESS."""


@dataclasses.dataclass(frozen=True)
class CharLMConfig:
    """Trains a character language model, keeps checkpoints, and reports.

    Start with --preset demo (real text, about three minutes on two CPU cores), study (tinyshakespeare at a size
    that CPU trains in minutes) or paper (6 layers, 5,000 steps, for accelerators); any flag overrides the preset.
    Running the same command again resumes it.
    """

    preset: Literal["demo", "study", "paper"] = "demo"
    """Which set of defaults to start from."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    def seeds(self) -> tuple[int, ...]:
        """The seeds that train at once."""
        return tuple(range(self.run.seed, self.run.seed + self.run.seeds))

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/charlm-{self.preset}"

    def identity(self) -> dict[str, Any]:
        """Everything that changes the trained numbers: a run may be resumed only if all of it is equal."""
        fields = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.optimizer)}
        return fields | {"seed": self.run.seed, "seeds": self.run.seeds}


PRESETS: dict[str, CharLMConfig] = {
    "demo": CharLMConfig(
        preset="demo",
        # Few layers and many steps: what a small budget buys most with.
        model=ModelConfig(num_layers=2),
        optimizer=OptimizerConfig(steps=1000, lr=3e-3, warmup=60),
        evaluation=EvaluationConfig(eval_every=250, log_every=25),
    ),
    "study": CharLMConfig(
        preset="study",
        model=ModelConfig(num_layers=3, num_heads=2, features=64, context_length=128),
        data=DataConfig(corpus="tinyshakespeare"),
        optimizer=OptimizerConfig(steps=800, batch_size=8, lr=3e-3, warmup=50),
        evaluation=EvaluationConfig(eval_every=200, eval_windows=128, prefix_windows=8),
    ),
    "paper": CharLMConfig(
        preset="paper",
        model=ModelConfig(num_layers=6, num_heads=8, features=256, context_length=256, dropout=0.1),
        data=DataConfig(corpus="tinyshakespeare"),
        optimizer=OptimizerConfig(steps=5000, batch_size=64, lr=3e-4, warmup=300),
        evaluation=EvaluationConfig(eval_every=500, eval_windows=None, prefix_windows=16, log_every=50),
    ),
}


def parse(argv: Sequence[str]) -> CharLMConfig:
    """Reads the command line: the preset gives the defaults, the other flags override them.

    Args:
        argv: the words after `python -m train charlm`.

    Returns:
        The checked configuration.

    Raises:
        UserError: for numbers that make no sense. Unknown flags and types exit with code 2 by themselves.

    Examples:
        >>> parse(["--preset", "paper", "--steps", "10"]).optimizer.steps
        10
    """
    config = parse_with_presets(argv, PRESETS, prog="python -m train charlm")
    _check(config)
    return config


def _check(config: CharLMConfig) -> None:
    check_model(config.model)
    check_training(config.optimizer, config.evaluation, config.run)
    evaluation = config.evaluation
    check_at_least(
        {
            "--context-length": (config.model.context_length, 2),
            "--eval-windows": (evaluation.eval_windows, 1),
            "--prefix-windows": (evaluation.prefix_windows, 0),
            "--sample-tokens": (evaluation.sample_tokens, 0),
        }
    )
    if evaluation.temperature < 0:
        raise UserError(f"--temperature must not be negative; got {evaluation.temperature}.")
