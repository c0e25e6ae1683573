"""DeBERTa's relative positions: the table of embeddings, and which row stands for which distance."""

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.parameters import parameter
from jaxattn.encoders.config import EncoderConfig, RelativePositions
from jaxattn.encoders.layers import INIT, make_norm


class RelativeEmbeddings(nnx.Module):
    """DeBERTa's table of relative positions, which all layers share."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        if config.relative is None:
            raise ValueError("relative must be given in the config; got None.")
        self.dtype = dtype
        shape = (2 * config.relative.span, config.hidden_size)
        self.table = parameter(INIT, rngs.params(), shape, ("length", "embed"), param_dtype)
        norm = make_norm(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = nnx.data(norm if config.relative.normalized else None)
        self.dropout = nnx.Dropout(config.dropout, deterministic=True)

    def __call__(self, length: int) -> Float[Array, "P D"]:
        """The table, normalised if the model does so, whatever the length of the texts."""
        table = self.table[...].astype(self.dtype)
        return table if self.norm is None else self.norm(table)


def relative_rows(length: int, relative: RelativePositions) -> np.ndarray:
    """For every pair (i, j) of positions, the row of the table that stands for i − j: (T, T) int32."""
    place = np.arange(length)
    distance = place[:, None] - place
    if relative.buckets:
        distance = log_buckets(distance, relative.buckets, relative.max_distance)
    return np.clip(distance + relative.span, 0, 2 * relative.span - 1).astype(np.int32)


def log_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of signed distances: one a distance up to m = buckets // 2, then logarithmic.

    Beyond m it is m + ceil((m − 1) log(|d| / m) / log((max_distance − 1) / m)), with the sign of d.

    Args:
        distance: integers.
        buckets: buckets a direction.
        max_distance: the distance that falls into the last bucket, plus one.

    Returns:
        Integers of the same shape.
    """
    middle = buckets // 2
    size = np.maximum(np.abs(distance), middle)
    # In float32 as the models were trained: rounding decides at the edges of buckets.
    growth = np.log(size.astype(np.float32) / np.float32(middle)) / np.log(
        np.float32((max_distance - 1) / middle)
    )
    far = np.ceil(growth * np.float32(middle - 1)).astype(np.int64) + middle
    return np.where(np.abs(distance) <= middle, distance, np.sign(distance) * far)
