"""A learned bias on the scores of siblings in a tree, by their offset among the children."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.parameters import HeldVariable, UndecayedParam, axis_names, parameter
from jaxattn.tree.tree import Tree

KINDS = (None, "learned", "sinusoidal", "fourier")


class SiblingFrequencies(HeldVariable):
    """Frequencies in radians per child; drawn or fixed, not learned."""


class SiblingBias(nnx.Module):
    r"""One bias (N, b, b) per level, a function of the offset c − d of two children: a table, or a sum of waves.

    "learned" is a table over offset, level and head; offsets beyond `reach` share the last entry. "sinusoidal" and
    "fourier" are $\sum_f a_f \cos(\omega_f (c - d)) + b_f \sin(\omega_f (c - d))$ with learned a, b and frequencies
    that fall geometrically from 1 to 1/reach, or are drawn from a normal distribution of that scale. The learned
    numbers start at 0. Levels beyond `levels` share the bias of the last.

    Args:
        kind: "learned", "sinusoidal" or "fourier".
        num_heads: heads N.
        levels: levels, from the leaves up, with their own bias.
        reach: largest offset with its own entry.
        frequencies: waves of the last two kinds.
        param_dtype: dtype of the learned numbers.
        rngs: random streams.

    Raises:
        ValueError: an unknown kind.

    Examples:
        >>> from flax import nnx
        >>> from jaxattn import Tree
        >>> bias = SiblingBias("fourier", 2, rngs=nnx.Rngs(0))
        >>> [x.shape for x in bias(Tree.uniform(100, 10))]
        [(2, 10, 10), (2, 10, 10)]
    """

    def __init__(
        self,
        kind: str,
        num_heads: int,
        *,
        levels: int = 4,
        reach: int = 32,
        frequencies: int = 16,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("sibling_bias", kind, KINDS[1:])
        self.levels, self.reach = levels, reach
        self.is_table = kind == "learned"
        if self.is_table:
            width = 2 * reach + 1
        else:
            width = 2 * frequencies
            if kind == "sinusoidal":
                steps = jnp.arange(frequencies) / max(frequencies - 1, 1)
                found = float(reach) ** -steps
            else:
                found = jax.random.normal(rngs.params(), (frequencies,)) / jnp.sqrt(reach)
            self.frequencies = SiblingFrequencies(found, **axis_names(None))
        self.weights = parameter(
            nnx.initializers.zeros,
            rngs.params(),
            (levels, num_heads, width),
            (None, "heads", None),
            param_dtype,
            UndecayedParam,
        )

    def __call__(self, tree: Tree) -> list[Float[Array, "N _ _"]]:
        """One bias a level of the tree."""
        weights = self.weights[...].astype(jnp.float32)
        found = []
        for level, size in enumerate(tree.branching):
            own = weights[min(level, self.levels - 1)]
            offset = jnp.arange(size)[:, None] - jnp.arange(size)
            if self.is_table:
                found.append(own[:, jnp.clip(offset, -self.reach, self.reach) + self.reach])
                continue
            angle = offset[..., None] * self.frequencies[...]
            waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
            found.append(jnp.einsum("cdf,nf->ncd", waves, own))
        return found
