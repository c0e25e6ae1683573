"""Random draws, checks and block layouts that several weight families share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice


def check_count(name: str, value: int) -> None:
    """Raises unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")


def check_sizes(head_dim: int, num_rows: int) -> None:
    """Raises unless both sizes are integers of at least 1."""
    check_count("head_dim", head_dim)
    check_count("num_rows", num_rows)


def num_blocks(num_rows: int, block: int) -> int:
    """How many blocks of `block` rows cover `num_rows` rows."""
    return -(-num_rows // block)


def stack_blocks(blocks: Float[Array, "*batch blocks size"], num_rows: int) -> Float[Array, "*batch M"]:
    """The outputs of all blocks concatenated and cut to M rows."""
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :num_rows]


def rademacher(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent signs, 1 or −1."""
    return jax.random.rademacher(key, shape, dtype=float)


def chi(key: PRNGKeyArray, degrees: int, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The norms of standard normal vectors of width `degrees`."""
    return jnp.sqrt(jax.random.chisquare(key, float(degrees), shape))


def row_norms(key: PRNGKeyArray, norms: str, width: int, num_rows: int) -> Float[Array, " M"]:
    """Norms of rows of the given width: those of normal vectors ("chi") or all equal to their rms ("sqrt")."""
    check_choice("norms", norms, ("chi", "sqrt"))
    return chi(key, width, (num_rows,)) if norms == "chi" else jnp.full((num_rows,), width**0.5)


def haar(key: PRNGKeyArray, size: int, blocks: int) -> Float[Array, "blocks size size"]:
    """Independent, uniformly distributed orthogonal matrices."""
    return jax.random.orthogonal(key, size, (blocks,))


def promote(x: Array, *leaves: Array) -> tuple[Array, ...]:
    """All arguments in float32, or float64 where x is."""
    dtype = jnp.result_type(jnp.float32, x)
    return tuple(array.astype(dtype) for array in (x, *leaves))


def pad_last(x: Float[Array, "*batch H"], size: int) -> Float[Array, "*batch size"]:
    """x with zeros appended to its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
