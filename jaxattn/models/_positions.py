"""The position encodings that a model can be told by name."""

from typing import Any

from flax import nnx

from jaxattn.core.checks import check_choice
from jaxattn.nn.positions import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "morlet", "morlet:learned")
ROTARY_BASE = 10000.0


def make_positions(
    name: str, length: int, features: int, param_dtype: Any, rngs: nnx.Rngs
) -> tuple[nnx.Module | None, float | None]:
    """The module that adds positions to an embedding, and the base of the rotation in attention; None for no such.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("positions", name, POSITIONS)
    if name == "learned":
        return LearnedPositions(length, features, param_dtype=param_dtype, rngs=rngs), None
    if name == "sinusoidal":
        return SinusoidalPositions(length, features), None
    if name.startswith("morlet"):
        return MorletPositionalEncoding(length, features, center=name.partition(":")[2] or "origin"), None
    return None, ROTARY_BASE if name == "rotary" else None
