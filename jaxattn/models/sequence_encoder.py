"""What classifiers of sequences have in common: from tokens to one vector a sequence."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import parameter
from jaxattn.models._positions import make_positions
from jaxattn.nn.spelling import parse_mechanism
from jaxattn.nn.transformer import Encoder, layer_norm
from jaxattn.tree.tree import Tree

POOLING = ("mean", "max", "first")
INIT = nnx.initializers.normal(0.02)


class SequenceEncoder(nnx.Module):
    """Embedding, positions, pre-norm bidirectional blocks, a pool over the real tokens, and a normalisation.

    Padding changes nothing: a sequence has the same vector however far it is padded.

    Args:
        vocab_size: number of tokens V.
        num_layers: number of blocks.
        num_heads: query heads.
        features: width D.
        max_length: the longest sequence, in tokens.
        mechanism: an attention mechanism or its spelling, such as "softmax" or "tree".
        positions: "none", "learned", "sinusoidal", "rotary", "morlet" or "morlet:learned".
        pooling: what a sequence becomes: the "mean" or "max" over its tokens, or its "first" token.
        mlp_ratio: hidden width of the MLPs over D.
        dropout: probability, on the embedding, on every branch and on the vector.
        num_kv_heads: key/value heads; None for num_heads.
        qk_norm: normalise queries and keys, with a gain that starts at this; see `jaxattn.nn.Attention`.
        projection_norm: LayerNorm after the projections; see `jaxattn.nn.Attention`.
        query_residual: add queries to what heads attend to; see `jaxattn.nn.Attention`. With this, projection_norm
            and the mechanism "tree:given:noself" the blocks are those of the published hierarchical encoder.
        dtype: dtype of the computation; parameters are kept in `param_dtype`.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown mechanism, position encoding or pooling, or sizes that do not divide.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        num_layers: int,
        num_heads: int,
        features: int,
        max_length: int,
        mechanism: Mechanism | str = "softmax",
        positions: str = "learned",
        pooling: str = "mean",
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        qk_norm: float | None = None,
        projection_norm: bool = False,
        query_residual: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("pooling", pooling, POOLING)
        if isinstance(mechanism, str):
            mechanism = parse_mechanism(mechanism)
        self.max_length = max_length
        self.pooling = pooling
        self.dtype = dtype
        # The residual stream sums 2 branches a block: smaller last projections keep its variance at the start.
        out_init = nnx.initializers.normal(0.02 / (2 * num_layers) ** 0.5)
        self.embedding = parameter(
            INIT, rngs.params(), (vocab_size, features), ("vocab", "embed"), param_dtype
        )
        added, rotary_base = make_positions(positions, max_length, features, param_dtype, rngs)
        self.positions = nnx.data(added)
        self.dropout = nnx.Dropout(dropout)
        self.encoder = Encoder(
            num_layers,
            features,
            num_heads,
            mechanism=mechanism,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            num_kv_heads=num_kv_heads,
            qk_norm=qk_norm,
            projection_norm=projection_norm,
            query_residual=query_residual,
            rotary_base=rotary_base,
            kernel_init=INIT,
            out_init=out_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(features, jnp.float32, param_dtype, rngs)

    def pooled(
        self,
        tokens: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"] | None = None,
        *,
        tree: Tree | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B D"]:
        """One vector a sequence, in float32; the arguments are those of `SequenceClassifier`."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens must have at most max_length = {self.max_length} columns; got {tokens.shape[1]}."
            )
        if token_mask is None:
            token_mask = jnp.ones(tokens.shape, bool)
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        x = self.embedding[...].astype(self.dtype)[tokens]
        x = x if self.positions is None else self.positions(x, positions)
        x = self.dropout(x, **drop)
        given: dict[str, Any] = {} if tree is None else {"tree": tree}
        x = self.encoder(x, token_mask=token_mask, positions=positions, **given, **drop)
        return self.dropout(self.norm(_pool(x.astype(jnp.float32), token_mask, self.pooling)), **drop)


def head_layer(
    width_in: int, width_out: int, axes: tuple[str, str], param_dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """A layer between a sequence's vector and the logits, computed in float32."""
    return nnx.Linear(
        width_in,
        width_out,
        kernel_init=INIT,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        dtype=jnp.float32,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _pool(x: jax.Array, token_mask: jax.Array, pooling: str) -> jax.Array:
    # Selected, not multiplied: what stands in padding may be anything, also NaN.
    if pooling == "mean":
        total = jnp.where(token_mask[..., None], x, 0).sum(axis=1)
        return total / jnp.maximum(token_mask.sum(axis=1), 1)[:, None]
    if pooling == "max":
        largest = jnp.where(token_mask[..., None], x, -jnp.inf).max(axis=1)
        return jnp.where(token_mask.any(axis=1)[:, None], largest, 0)
    first = jnp.argmax(token_mask, axis=1)
    return jnp.take_along_axis(x, first[:, None, None], axis=1)[:, 0]
