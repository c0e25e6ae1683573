"""One case of the attention suite: one call of one mechanism by one implementation at one size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.nn import Mechanism, parse_mechanism, spell_mechanism

TITLES = {"forward": "Forward", "backward": "Backward", "both": "Forward + backward"}
PASSES = tuple(TITLES)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement. `mechanism` is spelled as for training: softmax, lags:8, softmax+gate=running, ..."""

    mechanism: str
    implementation: str
    direction: str
    length: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    causal: bool

    @property
    def group(self) -> tuple[int, int, str]:
        """Cases of one group do the same work and are timed side by side."""
        return self.head_dim, self.length, self.direction

    @property
    def name(self) -> str:
        """What tells the cases of a group apart."""
        return f"{self.mechanism}/{self.implementation}"


def parse(mechanism: str) -> Mechanism:
    """The mechanism of this spelling, leaking gates included."""
    return parse_mechanism(mechanism, allow_leak=True)


def inner(mechanism: Any) -> Mechanism:
    """The mechanism inside the gates."""
    return inner(mechanism.inner) if hasattr(mechanism, "inner") else mechanism


def full_spelling(text: str) -> str:
    """The spelling with its defaults written out; `ega-NAME` is short for `softmax+gate=NAME`.

    Raises:
        ValueError: an unknown mechanism.
    """
    if text.startswith("ega-"):
        text = f"softmax+gate={text.removeprefix('ega-')}"
    return spell_mechanism(parse(text))


def inputs(case: Case) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random query (B, T, N, H), key and value (B, T, K, H)."""
    shapes = [
        (case.batch, case.length, heads, case.head_dim)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    ]
    query, key, value = (
        jax.random.normal(draw, shape, jnp.float32).astype(case.dtype)
        for draw, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    )
    return query, key, value
