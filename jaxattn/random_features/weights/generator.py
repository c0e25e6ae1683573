"""Rows generated from noise by a small network."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes

# Of a network's output at the start: too small to move the covariance (by 1e-4), large enough for gradients.
OUTPUT_SCALE = 0.01


@register
@dataclasses.dataclass(frozen=True)
class Generator(Dense):
    """w_m = ε_m + V tanh(U ε_m + b) + c with ε_m ~ N(0, I): any distribution a small network can reach.

    V starts near 0, so the rows start at N(0, I) up to one part in 10⁴ of their variance; trained, the features
    estimate a learned kernel instead of exp(x·y). O(M H F) for F hidden units, and about 2 H F numbers are trained.

    Attributes:
        hidden: F.
        hidden_kernel: U.
        hidden_bias: b.
        output_kernel: V.
        output_bias: c.
        noise: ε.

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import Generator
        >>> weights = Generator.create(jax.random.key(0), head_dim=8, num_rows=12)
        >>> bool(abs(weights.matrix() - weights.noise).max() < 0.1)  # near N(0, I) at the start
        True

    Reference: Pal Chowdhury, Solomou, Dubey & Sachan 2022, "Learning the transformer kernel" (its generative
    variant); Li, Chang, Mroueh, Yang & Póczos 2019, "Implicit kernel learning".
    """

    trainable: ClassVar[tuple[str, ...]] = ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias")

    hidden: int
    hidden_kernel: Any  # (H, F)
    hidden_bias: Any  # (F,)
    output_kernel: Any  # (F, H)
    output_bias: Any  # (H,)
    noise: Any  # (M, H)

    @classmethod
    def create(
        cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, hidden: int | None = None
    ) -> "Generator":
        """A network of `hidden` units (2 H when None) near the identity."""
        check_sizes(head_dim, num_rows)
        hidden = 2 * head_dim if hidden is None else hidden
        check_count("hidden", hidden)
        keys = jax.random.split(key, 3)
        return cls(
            head_dim,
            num_rows,
            hidden,
            jax.random.normal(keys[0], (head_dim, hidden)) * head_dim**-0.5,
            jnp.zeros(hidden),
            jax.random.normal(keys[1], (hidden, head_dim)) * OUTPUT_SCALE * hidden**-0.5,
            jnp.zeros(head_dim),
            jax.random.normal(keys[2], (num_rows, head_dim)),
        )

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        features = jnp.tanh(self.noise @ self.hidden_kernel + self.hidden_bias)
        return self.noise + features @ self.output_kernel + self.output_bias
