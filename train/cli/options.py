"""Groups of options that tasks share: backbone, optimiser, evaluation, run; and the configuration they make up.

The docstrings below the fields are the text of --help.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from train.errors import UserError


def check_at_least(limits: Mapping[str, tuple[float | None, float]]) -> None:
    """Raises unless every flag's value is None or at least its limit."""
    for flag, (value, least) in limits.items():
        if value is not None and value < least:
            raise UserError(f"{flag} must be at least {least}; got {value}.")


@dataclasses.dataclass(frozen=True)
class BackboneOptions:
    """The model."""

    attention: str = "softmax"
    """Mechanism, such as softmax+gate, features:oprf-orf:128 or tree:64x16; all are listed below."""
    positions: str = "learned"
    """none, learned, sinusoidal, rotary, morlet or morlet:learned."""
    qk_norm: float | None = None
    """Normalise queries and keys to this root mean square at the start (a learned gain); good for random features."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; must divide --features."""
    features: int = 64
    """Width of the residual stream."""
    dropout: float = 0.0
    """Dropout rate in training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""

    def check(self) -> None:
        """Raises UserError unless the sizes make sense; the mechanism is checked when the model is built."""
        check_at_least(
            {
                "--num-layers": (self.num_layers, 1),
                "--num-heads": (self.num_heads, 1),
                "--features": (self.features, 1),
            }
        )
        if self.features % self.num_heads:
            raise UserError(f"--num-heads must divide --features = {self.features}; got {self.num_heads}.")
        if self.qk_norm is not None and self.qk_norm <= 0:
            raise UserError(f"--qk-norm must be positive; got {self.qk_norm}.")
        check_dropout(self.dropout)


def check_dropout(rate: float) -> None:
    """Raises unless --dropout is a rate."""
    if not 0 <= rate < 1:
        raise UserError(f"--dropout must be in [0, 1); got {rate}.")


def check_attention(spelling: str, *, flag: str = "--attention") -> None:
    """Raises unless `spelling` is a mechanism that needs nothing but the sequence (a tree must state its sizes)."""
    from jaxattn.nn import parse_mechanism  # JAX takes seconds to import

    try:
        mechanism = parse_mechanism(spelling)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    if mechanism.needs_tree:
        raise UserError(
            f"{flag} must say the sizes of a tree, as in tree:64x16, as this task has no trees of its own; "
            f"got {spelling!r}."
        )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """AdamW with linear warm-up, decay to zero and gradient clipping."""

    steps: int = 1000
    """Updates in total; the learning rate is zero after the last."""
    batch_size: int = 16
    """Examples per update, over all devices and micro-batches."""
    accumulate: int = 1
    """Micro-batches per update: the same gradient in less memory."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: float = 0.1
    """Linear warm-up from zero: below 1 a share of --steps, otherwise a number of steps."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    weight_decay: float = 0.1
    """On matrices only; norms, biases, gate and Morlet parameters do not decay."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""

    @property
    def schedule(self) -> str:
        """How the rate decays after the warm-up: "cosine" or "linear"."""
        return "cosine"

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up.

        Examples:
            >>> OptimizerOptions(steps=800, warmup=0.0625).warmup_steps, OptimizerOptions(warmup=60).warmup_steps
            (50, 60)
        """
        return round(self.warmup * self.steps if self.warmup < 1 else self.warmup)

    def check(self) -> None:
        """Raises UserError unless the values make sense."""
        check_at_least(
            {
                "--steps": (self.steps, 1),
                "--batch-size": (self.batch_size, 1),
                "--accumulate": (self.accumulate, 1),
                "--warmup": (self.warmup, 0),
            }
        )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"--accumulate must divide --batch-size = {self.batch_size}; got {self.accumulate}."
            )
        if not (self.lr > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise UserError("--lr and --clip must be positive and --weight-decay not negative.")
        if self.warmup_steps >= self.steps:
            raise UserError(f"--warmup must be less than --steps = {self.steps}; got {self.warmup:g}.")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How often metrics are taken."""

    eval_every: int = 100
    """Steps between evaluations on the validation data; each is followed by a checkpoint."""
    log_every: int = 10
    """Steps between training records."""

    def check(self) -> None:
        """Raises UserError unless the values make sense."""
        check_at_least({"--eval-every": (self.eval_every, 1), "--log-every": (self.log_every, 1)})


@dataclasses.dataclass(frozen=True)
class RunOptions:
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

    def check(self) -> None:
        """Raises UserError unless the values make sense."""
        check_at_least(
            {
                "--seed": (self.seed, 0),
                "--seeds": (self.seeds, 1),
                "--keep": (self.keep, 1),
                "--fsdp": (self.fsdp, 1),
            }
        )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A run of a task, without its presets: subclasses give `model` and `data` their groups."""

    command: ClassVar[str] = ""
    """The subcommand."""
    preset: str = ""
    """Which set of defaults to start from."""
    model: Any = None
    data: Any = None
    optimizer: OptimizerOptions = OptimizerOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    run: RunOptions = RunOptions()

    def seeds(self) -> tuple[int, ...]:
        """The seeds that train at once."""
        return tuple(range(self.run.seed, self.run.seed + self.run.seeds))

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/{self.command}-{self.preset}"

    def identity(self) -> dict[str, Any]:
        """Everything but the data that changes the trained numbers: a run is resumed only if all of it is equal."""
        fields = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.optimizer)}
        fields |= {"warmup": self.optimizer.warmup_steps, "seed": self.run.seed, "seeds": self.run.seeds}
        # A checkpoint gives tuples back as lists.
        return {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}

    def check(self) -> None:
        """Raises UserError unless all groups make sense, by themselves and together."""
        for group in (self.model, self.data, self.optimizer, self.evaluation, self.run):
            if hasattr(group, "check"):
                group.check()
