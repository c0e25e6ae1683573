"""Parallel 1-D convolutions of several widths over a sequence, concatenated along the channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn.core.checks import check_dtype, check_rank, check_shape


def multi_scale_conv(
    x: Float[Array, "*B L D"],
    kernels: Sequence[Float[Array, "_ D _"]],
    biases: Sequence[Float[Array, " _"]] | None = None,
    *,
    mask: Bool[Array, "*B L"] | None = None,
) -> Float[Array, "*B L channels"]:
    r"""Convolves a sequence with kernels of several widths, keeping its length, and concatenates the channels.

    $$ y_i = \sum_{t=0}^{w-1} x_{i + t - \lfloor (w-1)/2 \rfloor} K_t + b $$

    for every kernel K of width w, where padding and tokens outside the sequence count as 0. A kernel of even width
    sees one more token after i than before it. The result does not depend on how much, or on which side, a sequence
    is padded.

    Args:
        x: (B, L, D), or (L, D).
        kernels: one or more arrays (w, D, F), of any widths w and numbers of filters F.
        biases: one array (F,) per kernel; None for no biases.
        mask: True at real tokens, (B, L). Padding is read as 0, even if it is NaN, and its output is 0.

    Returns:
        (B, L, sum of F) in the dtype of x, accumulated in float32.

    Raises:
        ValueError: a wrong shape or dtype, or `kernels` is empty.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import multi_scale_conv
        >>> x = jnp.ones((1, 5, 4))
        >>> y = multi_scale_conv(x, [jnp.ones((2, 4, 1)), jnp.ones((3, 4, 1))])
        >>> y[0].T
        Array([[ 8.,  8.,  8.,  8.,  4.],
               [ 8., 12., 12., 12.,  8.]], dtype=float32)
    """
    _check(x, kernels, biases, mask)
    if x.ndim == 2:
        one = None if mask is None else mask[None]
        return multi_scale_conv(x[None], kernels, biases, mask=one)[0]
    if mask is not None:
        x = jnp.where(mask[..., None], x, 0)
    branches = []
    for i, kernel in enumerate(kernels):
        before = (len(kernel) - 1) // 2
        # (B, L, D) * (w, D, F) -> (B, L, F)
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(1,),
            padding=[(before, len(kernel) - 1 - before)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        branches.append(y if biases is None else y + biases[i].astype(y.dtype))
    joined = jnp.concatenate(branches, axis=-1)
    return joined if mask is None else jnp.where(mask[..., None], joined, 0)


def _check(x, kernels, biases, mask) -> None:
    check_rank("x", x, (2, 3), "(B, L, D) or (L, D)")
    check_dtype("x", x, jnp.floating, "floating")
    if not len(kernels):
        raise ValueError("kernels must hold at least one array (w, D, F); got none.")
    for i, kernel in enumerate(kernels):
        check_rank(f"kernels[{i}]", kernel, (3,), "(w, D, F)")
        check_shape(
            f"kernels[{i}]", kernel, (len(kernel), x.shape[-1], kernel.shape[-1]), "(w, D, F) with the D of x"
        )
        if len(kernel) < 1:
            raise ValueError(f"kernels[{i}] must have a width of at least 1; got shape {kernel.shape}.")
    if biases is not None:
        if len(biases) != len(kernels):
            raise ValueError(f"biases must have one array per kernel, {len(kernels)}; got {len(biases)}.")
        for i, (bias, kernel) in enumerate(zip(biases, kernels, strict=True)):
            check_shape(f"biases[{i}]", bias, kernel.shape[-1:], "(F,)")
    if mask is not None:
        check_dtype("mask", mask, jnp.bool_, "boolean, True at real tokens")
        check_shape("mask", mask, x.shape[:-1], "(B, L)")
