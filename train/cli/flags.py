"""What the command lines have in common: presets, and checks that name the flag."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from train.errors import UserError

Config = TypeVar("Config")


def parse_with_presets(argv: Sequence[str], presets: Mapping[str, Config], *, prog: str) -> Config:
    """Reads a command line: the preset gives the defaults, the other flags override them.

    Args:
        argv: the words after the subcommand.
        presets: dataclasses by name; the first is taken where none is named.
        prog: how the command is called, for --help.

    Returns:
        The configuration, not yet checked.

    Raises:
        UserError: an unknown preset. Unknown flags and types exit with code 2 by themselves.
    """
    import tyro

    default = presets[named_in(argv, "--preset", presets)]
    return tyro.cli(tyro.conf.OmitArgPrefixes[type(default)], args=list(argv), default=default, prog=prog)  # type: ignore[misc]


def check_at_least(limits: Mapping[str, tuple[int | None, int]]) -> None:
    """Raises unless every flag's value is None or at least its limit."""
    for flag, (value, least) in limits.items():
        if value is not None and value < least:
            raise UserError(f"{flag} must be at least {least}; got {value}.")


def check_model(model: Any) -> None:
    """Raises unless the sizes of a model make sense."""
    check_at_least(
        {
            "--num-layers": (model.num_layers, 1),
            "--num-heads": (model.num_heads, 1),
            "--features": (model.features, 1),
        }
    )
    if model.features % model.num_heads:
        raise UserError(f"--num-heads must divide --features = {model.features}; got {model.num_heads}.")
    if model.qk_norm is not None and model.qk_norm <= 0:
        raise UserError(f"--qk-norm must be positive; got {model.qk_norm}.")
    if not 0 <= model.dropout < 1:
        raise UserError(f"--dropout must be in [0, 1); got {model.dropout}.")


def check_training(optimizer: Any, evaluation: Any, run: Any) -> None:
    """Raises unless the numbers of the optimiser, of the evaluation and of the run make sense."""
    check_at_least(
        {
            "--steps": (optimizer.steps, 1),
            "--batch-size": (optimizer.batch_size, 1),
            "--accumulate": (optimizer.accumulate, 1),
            "--warmup": (optimizer.warmup, 0),
            "--eval-every": (evaluation.eval_every, 1),
            "--log-every": (evaluation.log_every, 1),
            "--seed": (run.seed, 0),
            "--seeds": (run.seeds, 1),
            "--keep": (run.keep, 1),
            "--fsdp": (run.fsdp, 1),
        }
    )
    if optimizer.batch_size % optimizer.accumulate:
        raise UserError(
            f"--accumulate must divide --batch-size = {optimizer.batch_size}; got {optimizer.accumulate}."
        )
    if not (optimizer.lr > 0 and optimizer.clip > 0 and optimizer.weight_decay >= 0):
        raise UserError("--lr and --clip must be positive and --weight-decay not negative.")
    if optimizer.warmup >= optimizer.steps:
        raise UserError(f"--warmup must be less than --steps = {optimizer.steps}; got {optimizer.warmup}.")


def named_in(argv: Sequence[str], flag: str, choices: Iterable[str]) -> str:
    """What `flag` says in `argv`, or the first of `choices`.

    It decides the defaults that --help shows, so it has to be known before the other flags are read.

    Raises:
        UserError: none of `choices`.

    Examples:
        >>> named_in(["--task", "text", "--steps", "3"], "--task", ["listops", "text"])
        'text'
    """
    names = list(choices)
    name = names[0]
    for word, following in itertools.pairwise([*argv, ""]):
        if word == flag:
            name = following
        elif word.startswith(f"{flag}="):
            name = word.removeprefix(f"{flag}=")
    if name not in names:
        raise UserError(f"{flag} must be one of {', '.join(names)}; got {name!r}.")
    return name
