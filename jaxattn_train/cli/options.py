"""Groups of options that tasks share: backbone, optimiser, evaluation, run; and the configuration they make up.

The docstrings below the fields are the text of --help.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from jaxattn_train.errors import UserError


class Options:
    """A frozen dataclass of options, or of groups of them; `at_least` gives lower bounds by field."""

    brief: ClassVar[tuple[str, ...]] = ()
    """The fields that --help shows, where there are so many that the others are left to --help-all."""
    _at_least: ClassVar[Mapping[str, float]] = {}

    def __init_subclass__(cls, *, at_least: Mapping[str, float] | None = None) -> None:
        super().__init_subclass__()
        cls._at_least = {**cls._at_least, **(at_least or {})}

    def check(self) -> None:
        """Raises UserError unless the values make sense, by themselves and together; None is in all bounds."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, least = getattr(self, field.name), self._at_least.get(field.name)
            if isinstance(value, Options):
                value.check()
            elif least is not None and value is not None and value < least:
                raise UserError(f"{flag(field.name)} must be at least {least}; got {value}.")
        self._check()

    def _check(self) -> None:
        """What a subclass checks besides."""


def flag(name: str) -> str:
    """The flag of a field.

    Examples:
        >>> flag("num_layers")
        '--num-layers'
    """
    return f"--{name.replace('_', '-')}"


WRITTEN_BEFORE = {"scan_layers": "off"}
"""What runs did before they named these options."""


@dataclasses.dataclass(frozen=True)
class BackboneOptions(Options, at_least={"num_layers": 1, "num_heads": 1, "features": 1}):
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
    scan_layers: Literal["auto", "on", "off"] = "auto"
    """Scan over the layers, so that the time to compile does not grow with them; auto does from 4 layers on."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass rematerialises to save memory: full everything but the input of each layer, dots what
    is not a product with a learned matrix."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """Those in a run's record; runs from before layers could be scanned do not name that option."""
        return cls(**(WRITTEN_BEFORE | record["config"]["model"]))

    def _check(self) -> None:
        if self.features % self.num_heads:
            raise UserError(f"--num-heads must divide --features = {self.features}; got {self.num_heads}.")
        if self.qk_norm is not None and self.qk_norm <= 0:
            raise UserError(f"--qk-norm must be positive; got {self.qk_norm}.")
        check_dropout(self.dropout)


def check_dropout(rate: float) -> None:
    """Raises unless --dropout is a rate."""
    if not 0 <= rate < 1:
        raise UserError(f"--dropout must be in [0, 1); got {rate}.")


def check_attention(
    spelling: str, *, length: int = 1024, flag: str = "--attention", allow_leak: bool = False
) -> None:
    """Raises unless `spelling` is a mechanism that needs nothing but the sequence.

    Args:
        spelling: of the mechanism.
        length: of the sequences, for the suggestion where a tree does not say its sizes.
        flag: that has the spelling.
        allow_leak: see `parse_mechanism`.
    """
    from jaxattn.nn import parse_mechanism  # JAX takes seconds to import

    try:
        mechanism = parse_mechanism(spelling, allow_leak=allow_leak)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    if mechanism.needs_tree:
        leaves = 2 ** round(math.log2(length) / 2)
        raise UserError(
            f"{flag} must say the sizes of a tree, from the leaves up, as this task has no trees of its own; for "
            f"{length} tokens tree:{leaves}x{-(-length // leaves)}; got {spelling!r}."
        )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Options, at_least={"steps": 1, "batch_size": 1, "accumulate": 1, "warmup": 0}):
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

    def _check(self) -> None:
        if self.batch_size % self.accumulate:
            raise UserError(
                f"--accumulate must divide --batch-size = {self.batch_size}; got {self.accumulate}."
            )
        if not (self.lr > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise UserError("--lr and --clip must be positive and --weight-decay not negative.")
        if self.warmup_steps >= self.steps:
            raise UserError(f"--warmup must be less than --steps = {self.steps}; got {self.warmup:g}.")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(Options, at_least={"eval_every": 1, "log_every": 1}):
    """How often metrics are taken."""

    eval_every: int = 100
    """Steps between evaluations on the validation data; each is followed by a checkpoint."""
    log_every: int = 10
    """Steps between training records."""


@dataclasses.dataclass(frozen=True)
class RunOptions(Options, at_least={"seed": 0, "seeds": 1, "keep": 1, "stall_timeout": 1}):
    """Seeds, files and devices."""

    seed: int = 0
    """First seed (parameters, data order, dropout)."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ..."""
    seed_mode: Literal["auto", "vmap", "sequential"] = "auto"
    """vmap trains the seeds side by side, sequential one after the other in each step (less memory); auto takes
    vmap on accelerators if it fits, sequential on CPU, where it is faster."""
    out: str | None = None
    """Run folder; by default runs/SUBCOMMAND-PRESET, or runs/SUBCOMMAND-FILE for your own file. The same command
    again resumes the run in it."""
    overwrite: bool = False
    """Start over in a folder that holds another run (its checkpoints are deleted)."""
    resume_step: int | None = None
    """Resume from this checkpoint instead of the newest; later ones are deleted."""
    keep: int = 3
    """Newest checkpoints to keep, next to the best on the validation data."""
    best_only: bool = False
    """In the end keep the best parameters alone, a third of a checkpoint: such a run cannot be trained further."""
    mesh: str = ""
    """How devices share the work, such as fsdp=4,tensor=2: fsdp splits the batch and the parameters, tensor heads and
    MLPs, sequence the tokens of every sequence, data (the devices that are left) the batch alone."""
    compilation_cache: bool = True
    """Keep compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    compile_for: str | None = None
    """Train nothing; compile the training step for devices that this machine lacks, such as v5e:4x4 or h100, and
    print the memory, time and communication it would need there."""
    distributed: bool = False
    """Call jax.distributed.initialize(): one process of several. Implied by JAX_COORDINATOR_ADDRESS."""
    stall_timeout: float = 1800.0
    """Seconds without a step or an evaluation after which one of several processes ends, and all others with it."""


@dataclasses.dataclass(frozen=True)
class TaskConfig(Options):
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
        """The run folder, which is named after the user's own file, or else the preset."""
        own = getattr(self.data, "train_file", None) or getattr(self.data, "text_file", None)
        return self.run.out or f"runs/{self.command}-{Path(own).name.split('.')[0] if own else self.preset}"

    def identity(self) -> dict[str, Any]:
        """Everything but the data that changes the trained numbers: a run is resumed only if all of it is equal."""
        fields = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.optimizer)}
        fields.pop("remat", None)  # changes the memory only
        fields |= {"warmup": self.optimizer.warmup_steps, "seed": self.run.seed, "seeds": self.run.seeds}
        if (weights := getattr(self.data, "class_weights", None)) is not None:
            fields["class_weights"] = weights
        # A checkpoint gives tuples back as lists.
        return {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}
