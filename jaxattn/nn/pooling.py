"""One vector a sequence from the vectors of its tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.parameters import parameter

POOLINGS = ("mean", "max", "cls", "attention")


class Pooling(nnx.Module):
    """Reduces the vectors of the real tokens to one vector; a sequence without any gives 0.

    Args:
        kind: "mean" or "max" over the tokens; "cls" for the first one, where BERT puts [CLS]; "attention" for a mean
            with learned weights, softmax(x w), which is the plain mean at first.
        width: width D of the vectors.
        param_dtype: dtype of w.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown kind.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Pooling
        >>> x, token_mask = jnp.array([[[9.0], [1.0], [3.0]]]), jnp.array([[False, True, True]])
        >>> {kind: Pooling(kind, 1, rngs=nnx.Rngs(0))(x, token_mask).item() for kind in ("mean", "max", "cls")}
        {'mean': 2.0, 'max': 3.0, 'cls': 1.0}
    """

    def __init__(self, kind: str, width: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        check_choice("pooling", kind, POOLINGS)
        self.kind = kind
        weights = None
        if kind == "attention":
            weights = parameter(
                nnx.initializers.zeros_init(), rngs.params(), (width,), ("embed",), param_dtype
            )
        self.weights = nnx.data(weights)

    def __call__(self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """The vectors, in the dtype of `x`; means are taken in float32."""
        real = token_mask[..., None]
        # Selected, not multiplied by the mask: padding may hold anything, NaN included.
        wide = jnp.where(real, x.astype(jnp.float32), 0)
        if self.kind == "mean":
            return (wide.sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)).astype(x.dtype)
        if self.weights is not None:
            scores = wide @ self.weights[...].astype(jnp.float32)
            # Finite, so that a sequence without tokens has the gradient 0.
            scores = jnp.where(token_mask, scores, jnp.finfo(jnp.float32).min)
            weights = jax.nn.softmax(scores, axis=-1)
            return jnp.einsum("bl,bld->bd", weights, wide).astype(x.dtype)
        if self.kind == "max":
            pooled = jnp.where(real, x, -jnp.inf).max(axis=1, initial=-jnp.inf)
        else:
            # A column of padding more, so that there is an argmax in sequences of length 0.
            first = jnp.argmax(jnp.pad(token_mask, ((0, 0), (0, 1))), axis=1)
            pooled = jnp.take_along_axis(x, first[:, None, None], axis=1, mode="fill")[:, 0]
        return jnp.where(real.any(axis=1), pooled, 0)
