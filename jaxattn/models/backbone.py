"""The part that all models share: token embedding, positions and a stack of blocks."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike
from jaxattn.core.checks import check_choice, check_dtype, check_rank
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import parameter
from jaxattn.core.registry import parse_mechanism
from jaxattn.nn.layers import check_sizes
from jaxattn.nn.positions import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions
from jaxattn.nn.scanned import REMAT
from jaxattn.nn.stack import Stack
from jaxattn.positions import Rotary

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "morlet", "morlet:learned")
INIT = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Sizes and options of a model's embedding and blocks.

    Args:
        num_layers: number of blocks.
        num_heads: query heads.
        hidden_size: width D of the residual stream.
        max_length: the longest sequence, in tokens (the context of a language model).
        mechanism: an attention mechanism or its spelling, such as "softmax+gate=running" or "tree".
        positions: "none", "learned", "sinusoidal", "rotary", "morlet" (all windows at the origin, as published) or
            "morlet:learned" (learned centres).
        mlp_ratio: hidden width of the MLPs over D.
        dropout: probability, on the embedding and on every branch.
        num_kv_heads: key/value heads; None for num_heads.
        qk_norm: normalise queries and keys, with a gain that starts at this; see `jaxattn.nn.Attention`.
        projection_norm: LayerNorm of every query, key and value; see `jaxattn.nn.Attention`.
        query_residual: add each head's query to its output; see `jaxattn.nn.Attention`. With this, projection_norm
            and the mechanism "tree:given:noself" the blocks are those of the published hierarchical encoder.
        allow_leak: accept the spelling "+gate=sequence" in a causal model, where it reads later tokens.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        scan_layers: scan over the blocks; None from 4 layers on. See `jaxattn.nn.Encoder`.
        remat: "none", "dots" or "full": what is rematerialised in the backward pass; see `jaxattn.nn.Encoder`.

    Raises:
        ValueError: an unknown mechanism, position encoding or remat; a size that is not positive; a dropout outside
            [0, 1).

    Examples:
        >>> from jaxattn.models import BackboneConfig
        >>> BackboneConfig(num_layers=2, num_heads=2, hidden_size=16, max_length=32, positions="fourier")
        Traceback (most recent call last):
        ...
        ValueError: positions must be one of 'none', 'learned', ... 'morlet:learned'; got 'fourier'.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    max_length: int
    mechanism: Mechanism | str = "softmax"
    positions: str = "learned"
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    num_kv_heads: int | None = None
    qk_norm: float | None = None
    projection_norm: bool = False
    query_residual: bool = False
    allow_leak: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan_layers: bool | None = None
    remat: str = "none"

    def __post_init__(self):
        check_choice("positions", self.positions, POSITIONS)
        check_choice("remat", self.remat, REMAT)
        check_sizes(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_size=self.hidden_size,
            max_length=self.max_length,
            dropout=self.dropout,
        )
        self.parsed_mechanism()

    def parsed_mechanism(self) -> Mechanism:
        """The mechanism, also where it is given by its spelling."""
        if isinstance(self.mechanism, str):
            return parse_mechanism(self.mechanism, allow_leak=self.allow_leak)
        return self.mechanism


class Backbone(nnx.Module):
    """Embedding, positions, and the options of the blocks that subclasses stack.

    Args:
        vocab_size: number of tokens V.
        config: sizes and options.
        rngs: random streams for the initial values.
    """

    def __init__(self, vocab_size: int, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.max_length, self.dtype = config.max_length, config.dtype
        self.embedding = parameter(
            INIT, rngs.params(), (vocab_size, config.hidden_size), ("vocab", "embed"), config.param_dtype
        )
        self.positions = nnx.data(_positions(config, rngs))
        self.dropout = nnx.Dropout(config.dropout, deterministic=True)

    def _stack(self, kind: type[Stack], config: BackboneConfig, rngs: nnx.Rngs) -> Any:
        return kind(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            mechanism=config.parsed_mechanism(),
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            num_kv_heads=config.num_kv_heads,
            qk_norm=config.qk_norm,
            projection_norm=config.projection_norm,
            query_residual=config.query_residual,
            rotary=Rotary() if config.positions == "rotary" else None,
            kernel_init=INIT,
            # The residual stream sums 2 branches a block: smaller last projections keep its variance at the start.
            out_init=nnx.initializers.normal(0.02 / (2 * config.num_layers) ** 0.5),
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            scan_layers=config.scan_layers,
            remat=config.remat,
            rngs=rngs,
        )

    def _embed(
        self, tokens: Int[ArrayLike, "B T"], positions: Int[Array, "*#B T"] | None
    ) -> Float[Array, "B T D"]:
        """The embedding of the tokens plus that of their positions."""
        check_dtype("tokens", tokens, jnp.integer, "integer token ids")
        check_rank("tokens", tokens, (2,), "(B, T)")
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens must have at most max_length = {self.max_length} columns; got {tokens.shape[1]}."
            )
        x = self.embedding[...].astype(self.dtype)[tokens]
        return x if self.positions is None else self.positions(x, positions)

    def _for_blocks(self, positions: Int[Array, "*#B T"] | None) -> Int[Array, "*#B T"] | None:
        """The positions, unless `_embed` adds their encoding: blocks then have none to rotate by."""
        return positions if self.positions is None else None


def _positions(config: BackboneConfig, rngs: nnx.Rngs) -> nnx.Module | None:
    """The module that adds positions to an embedding; None where blocks rotate queries and keys, or for none."""
    name, length, width = config.positions, config.max_length, config.hidden_size
    if name == "learned":
        return LearnedPositions(length, width, param_dtype=config.param_dtype, rngs=rngs)
    if name == "sinusoidal":
        return SinusoidalPositions(length, width)
    if name.startswith("morlet"):
        return MorletPositionalEncoding(length, width, center=name.partition(":")[2] or "origin")
    return None
