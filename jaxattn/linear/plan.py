"""What a linear-attention kernel knows at trace time: feature functions and the sizes of its blocks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call, repeat_heads
from jaxattn.core.checks import is_known
from jaxattn.linear.projection import Kind, Projection

# The arrays that feature functions need; those with a set for each key/value head have heads as axis 0.
Parameters = Sequence[Array]
# (parameters of one head, x (..., D), log scale or None) -> features (..., F) of magnitude about 1 at most and their
# log scale (...), both in float32 for bfloat16 x. The backward pass hands in the log scale of the forward pass, which
# then need not be found again.
Features = Callable[[Parameters, Array, Array | None], tuple[Array, Array]]


class Fused(NamedTuple):
    """Features that follow from one product with a dense matrix.

    Attributes:
        kind: what they are of the product.
        projection: the matrices, from the parameters of one head: arrays without the axis of heads.
    """

    kind: Kind
    projection: Callable[[Parameters], Projection]

    def project(self, parameters: Parameters, by_head: tuple[bool, ...]) -> Projection:
        """The matrices of all heads, or one set with a leading axis of 1."""
        if not any(by_head):
            return jax.tree.map(lambda x: x[None], self.projection(parameters))
        return jax.vmap(self.projection, ([0 if own else None for own in by_head],))(parameters)


class FeatureFunctions(NamedTuple):
    """How queries and keys become features.

    Attributes:
        query: makes features of queries, of which only the direction matters.
        key: makes features of keys.
        by_head: for every parameter array, whether its first axis counts key/value heads.
        fused: how kernels that make features on the chip get them; None where they cannot.
    """

    query: Features
    key: Features
    by_head: tuple[bool, ...] = ()
    fused: Fused | None = None

    def axes(self) -> list[int | None]:
        """The axis of heads of every parameter array, as `jax.vmap` takes it."""
        return [0 if by_head else None for by_head in self.by_head]

    def of_one_head(self, parameters: Parameters) -> list[Array]:
        """The parameters of the first head."""
        return [p[0] if by_head else p for p, by_head in zip(parameters, self.by_head, strict=True)]

    def number(self, parameters: Parameters, x: Any) -> int:
        """How many features there are of tokens like x (…, D)."""
        token = jax.ShapeDtypeStruct((1, x.shape[-1]), x.dtype)
        return jax.eval_shape(self.key, self.of_one_head(parameters), token, None)[0].shape[-1]

    def repeat_parameters(self, parameters: Parameters, heads: int) -> list[Array]:
        """One set for each of `heads`: repeated where keys were repeated for a group of queries."""
        found = {p.shape[0] for p, by_head in zip(parameters, self.by_head, strict=True) if by_head}
        if any(heads % count for count in found):
            raise ValueError(
                f"feature_map must have parameters for {heads} heads, or one set for all; got {found}."
            )
        return [
            repeat_heads(p, heads, axis=0) if by_head else p
            for p, by_head in zip(parameters, self.by_head, strict=True)
        ]


def _normalized(_: Parameters, x: Array, log_scale: Array | None) -> tuple[Array, Array]:
    """Given features divided by the power of two at their largest, which rounds nothing."""
    x = x.astype(jnp.result_type(jnp.float32, x))
    log_two = jnp.asarray(math.log(2), x.dtype)
    # By the bits of floating-point numbers: `jnp.frexp` and `jnp.ldexp` are several times as much to compile.
    info = jnp.finfo(x.dtype)
    integer, bias = jnp.dtype(f"int{info.bits}"), info.maxexp - 1
    if log_scale is None:
        largest = lax.bitcast_convert_type(lax.stop_gradient(jnp.abs(x).max(axis=-1)), integer)
        # Of a normal number, as is its inverse.
        exponent = jnp.clip(largest >> info.nmant, 1, 2 * bias - 1)
    else:
        exponent = jnp.round(log_scale / log_two).astype(integer) + bias
    inverse = lax.bitcast_convert_type((2 * bias - exponent) << info.nmant, x.dtype)
    return x * inverse[..., None], (exponent - bias).astype(x.dtype) * log_two


def _no_projection(_: Parameters) -> Projection:
    return Projection()


IDENTITY = FeatureFunctions(_normalized, _normalized, fused=Fused(Kind("given"), _no_projection))


# Tokens in one block of one chunk whatever the platform; there is nothing to keep in a cache.
_SHORT = 64


class Tiling(NamedTuple):
    """How a platform likes its work cut.

    Attributes:
        block: the most tokens worked on at a time: they should stay in the cache of a CPU, in the VMEM of a TPU.
        chunk: the most tokens inside which causal pairs meet one by one: a larger one has larger products and more
            such pairs.
        on_cpu: whether bfloat16 becomes float32 in products and, on a single device, batch and heads are looped over,
            which suits the caches of a CPU; else they are vmapped, and bfloat16 stays what it is.
    """

    block: int
    chunk: int
    on_cpu: bool


def choose_tiling(chunk_size: int | None, call: Call, platform: str) -> Tiling:
    """The tiling for a platform, with the caller's chunk size if there is one.

    A few tokens are cut alike on all platforms, so that one program is traced for all of them.
    """
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be None or a positive integer; got {chunk_size!r}.")
    lengths = call.query.shape[1], call.key.shape[1]
    is_short = is_known(*lengths) and max(lengths) <= _SHORT
    if platform == "cpu" and not (is_short and call.query.dtype != jnp.bfloat16):
        return Tiling(2048, chunk_size or 64, True)
    return Tiling(1024, chunk_size or 128, False)


class Plan(NamedTuple):
    """Everything static about one pass over the tokens.

    Attributes:
        features: the feature functions.
        is_causal: whether query i meets keys up to i only.
        strict: whether it does not meet key i itself (with is_causal).
        divided: whether the result is the weighted mean; else the weighted sums (…, V + 1).
        query_block: queries worked on at a time.
        key_block: keys worked on at a time; the same if causal.
        chunk: divides the block; inside a chunk causal pairs meet one by one.
        on_cpu: see `Tiling`.
    """

    features: FeatureFunctions
    is_causal: bool
    strict: bool
    divided: bool
    query_block: int
    key_block: int
    chunk: int
    on_cpu: bool

    def operands(self, tree: Any) -> Any:
        """Arrays of one block as they enter products."""
        if not self.on_cpu:
            return tree
        return jax.tree.map(lambda x: x.astype(jnp.result_type(jnp.float32, x)), tree)


def make_plan(
    features: FeatureFunctions,
    tiling: Tiling,
    length: int,
    key_length: int,
    *,
    is_causal: bool,
    strict: bool = False,
    divided: bool = True,
) -> Plan:
    """Block and chunk sizes for the lengths: no larger than the tiling's and equal, so that little is padded."""

    def block(length: int, multiple: int = 1) -> int:
        count = -(-length // tiling.block)
        return -(-length // (count * multiple)) * multiple

    chunks = -(-length // tiling.chunk)
    chunk = -(-length // chunks) if is_causal else 1
    query_block = block(length, chunk)
    return Plan(
        features=features,
        is_causal=is_causal,
        strict=strict,
        divided=divided,
        query_block=query_block,
        key_block=query_block if is_causal else block(key_length),
        chunk=chunk,
        on_cpu=tiling.on_cpu,
    )
