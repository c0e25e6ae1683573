"""A learned mixture of Gaussians."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes

# Small enough to start near N(0, I), large enough that the components do not all get the same gradient.
_SPREAD = 0.1


@register
@dataclasses.dataclass(frozen=True)
class GMM(Dense):
    """w_m = μ_c + exp(s_c) ε_m, ε_m ~ N(0, I), component c drawn in proportion to exp(logit).

    At the start μ_c ~ 0.1 N(0, I) and exp(2 s) = 1 − 0.01, so that E[w w'] = I; trained, the features estimate a
    learned kernel instead of exp(x·y). μ and s get exact pathwise gradients. The choice of c, argmax of logit +
    Gumbel noise, has none: it gets that of the softmax of the same scores (straight-through), which is biased.
    O(M H), and (2 H + 1) C numbers are trained.

    Attributes:
        num_components: C.
        means: μ.
        log_scales: s.
        logits: the components' log odds.
        noise: ε.
        gumbel: the noise that picks a component.

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import GMM
        >>> GMM.create(jax.random.key(0), head_dim=8, num_rows=12, num_components=3).means.shape
        (3, 8)

    Reference: Pal Chowdhury, Solomou, Dubey & Sachan 2022, "Learning the transformer kernel"; Jang, Gu & Poole
    2017, "Categorical reparameterization with Gumbel-softmax".
    """

    trainable: ClassVar[tuple[str, ...]] = ("means", "log_scales", "logits")

    num_components: int
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
        key_noise, key_gumbel = jax.random.split(key_draws)
        return cls(
            head_dim,
            num_rows,
            num_components,
            means=_SPREAD * jax.random.normal(key_means, shape),
            log_scales=jnp.full(shape, 0.5 * jnp.log(1 - _SPREAD**2)),
            logits=jnp.zeros(num_components),
            noise=jax.random.normal(key_noise, (num_rows, head_dim)),
            gumbel=jax.random.gumbel(key_gumbel, (num_rows, num_components)),
        )

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        scores = self.logits + self.gumbel
        soft = jax.nn.softmax(scores)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])
        pick = hard + soft - jax.lax.stop_gradient(soft)
        return pick @ self.means + jnp.exp(pick @ self.log_scales) * self.noise
