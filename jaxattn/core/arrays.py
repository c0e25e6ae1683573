"""Arrays as tokenizers and data pipelines give them: of JAX or of NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

ArrayLike = Array | np.ndarray
TokenMask = Bool[ArrayLike, "B L"] | Int[ArrayLike, "B L"] | None


def as_jax(*arrays: Any) -> tuple[Any, ...]:
    """The same as arrays of JAX; None stays None."""
    return tuple(None if array is None else jnp.asarray(array) for array in arrays)
