"""A learned mixture of Gaussians."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.dense import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes

# Small enough to start near N(0, I), large enough that the components do not all get the same gradient.
_SPREAD = 0.1


@register
@dataclasses.dataclass(frozen=True)
class GMM(Dense):
    """w_m = μ_c + exp(s_c) ε_m, ε_m ~ N(0, I), component c drawn in proportion to exp(logit).

    μ and s get exact pathwise gradients. A draw of c, argmax of logit + Gumbel noise, has none: its gradient is
    that of the softmax of the same scores (straight-through), which is biased.

    At the start μ_c ~ 0.1 N(0, I) and exp(2 s) = 1 − 0.01, so that E[w w'] = I.

    Attributes:
        means: μ.
        log_scales: s.
        logits: the components' log odds.
        noise: ε.
        gumbel: the noise that picks a component.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import GMM
        >>> weights = GMM.create(jax.random.key(0), head_dim=8, num_rows=12, num_components=3)
        >>> weights.apply(jnp.ones((2, 8))).shape
        (2, 12)

    Reference: Pal Chowdhury, Solomou, Dubey & Sachan 2022, "Learning the transformer kernel"; Jang, Gu & Poole
    2017, "Categorical reparameterization with Gumbel-softmax".
    """

    trainable: ClassVar[tuple[str, ...]] = ("means", "log_scales", "logits")

    means: Any  # (C, H)
    log_scales: Any  # (C, H)
    logits: Any  # (C,)
    noise: Any  # (M, H)
    gumbel: Any  # (M, C)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, num_components: int = 4) -> "GMM":
        """Equally likely components, nearly equal to N(0, I)."""
        check_sizes(head_dim, num_rows)
        check_count("num_components", num_components)
        shape = (num_components, head_dim)
        key_means, key_draws = jax.random.split(key)
        log_scales = jnp.full(shape, 0.5 * jnp.log(1 - _SPREAD**2))
        means = _SPREAD * jax.random.normal(key_means, shape)
        logits = jnp.zeros(num_components)
        return cls(head_dim, num_rows, means, log_scales, logits, *cls._draw(key_draws, num_rows, shape))

    @staticmethod
    def _draw(key: PRNGKeyArray, num_rows: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
        key_noise, key_gumbel = jax.random.split(key)
        noise = jax.random.normal(key_noise, (num_rows, shape[1]))
        return noise, jax.random.gumbel(key_gumbel, (num_rows, shape[0]))

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        scores = self.logits + self.gumbel
        soft = jax.nn.softmax(scores)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])
        pick = hard + soft - jax.lax.stop_gradient(soft)
        return pick @ self.means + jnp.exp(pick @ self.log_scales) * self.noise

    def resample(self, key: PRNGKeyArray) -> "GMM":
        """New noise and choices."""
        noise, gumbel = self._draw(key, self.num_rows, self.means.shape)
        return dataclasses.replace(self, noise=noise, gumbel=gumbel)
