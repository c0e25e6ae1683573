"""Rows generated from noise by an invertible network."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes
from jaxattn.random_features.weights.generator import OUTPUT_SCALE


@register
@dataclasses.dataclass(frozen=True)
class INN(Dense):
    """w_m = g(ε_m), ε_m ~ N(0, I), g a chain of affine coupling layers, each z ↦ z or exp(s(z')) z + t(z').

    A layer keeps every other coordinate, z', and transforms the rest by s = 2 tanh(·/2) and t from a network of
    one hidden layer of z'; the next layer swaps the two sets. g is a bijection with a known Jacobian, so, unlike
    those of `generator`, trained rows cannot collapse onto fewer dimensions. It starts near the identity, the rows at
    N(0, I) up to about one part in 10⁴ of their variance; trained, the features estimate a learned kernel instead of
    exp(x·y). O(M H F) a layer of F hidden units, and about 3 H F numbers a layer are trained.

    Attributes:
        num_layers: L, the couplings.
        hidden: F.
        hidden_kernel: the hidden layers' weights.
        hidden_bias: their biases.
        output_kernel: the weights of s and t.
        output_bias: their biases.
        noise: ε.

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import INN
        >>> weights = INN.create(jax.random.key(0), head_dim=8, num_rows=12, num_layers=2)
        >>> bool(abs(weights.matrix() - weights.noise).max() < 0.2)  # near N(0, I) at the start
        True

    Reference: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP".
    """

    trainable: ClassVar[tuple[str, ...]] = ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias")

    num_layers: int
    hidden: int
    hidden_kernel: Any  # (L, H, F)
    hidden_bias: Any  # (L, F)
    output_kernel: Any  # (L, F, 2 H)
    output_bias: Any  # (L, 2 H)
    noise: Any  # (M, H)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_rows: int,
        *,
        num_layers: int = 4,
        hidden: int | None = None,
    ) -> "INN":
        """`num_layers` couplings, each with a network of `hidden` units (2 H when None)."""
        check_sizes(head_dim, num_rows)
        check_count("num_layers", num_layers)
        hidden = 2 * head_dim if hidden is None else hidden
        check_count("hidden", hidden)
        keys = jax.random.split(key, 3)
        output = jax.random.normal(keys[1], (num_layers, hidden, 2 * head_dim))
        return cls(
            head_dim,
            num_rows,
            num_layers,
            hidden,
            jax.random.normal(keys[0], (num_layers, head_dim, hidden)) * head_dim**-0.5,
            jnp.zeros((num_layers, hidden)),
            output * OUTPUT_SCALE * hidden**-0.5,
            jnp.zeros((num_layers, 2 * head_dim)),
            jax.random.normal(keys[2], (num_rows, head_dim)),
        )

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        z = self.noise
        for layer in range(self.num_layers):
            kept = (np.arange(self.head_dim) + layer) % 2 == 1
            features = jnp.tanh(jnp.where(kept, z, 0) @ self.hidden_kernel[layer] + self.hidden_bias[layer])
            output = features @ self.output_kernel[layer] + self.output_bias[layer]
            log_scale, shift = jnp.split(output, 2, axis=-1)
            # Bounded, so that one large step of an optimiser cannot overflow the exponential.
            z = jnp.where(kept, z, z * jnp.exp(2 * jnp.tanh(log_scale / 2)) + shift)
        return z
