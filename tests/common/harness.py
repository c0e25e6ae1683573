"""Rows of the table made ready for the checks: arrays, and functions compiled once for all tests."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import Attention
from tests.common import naive
from tests.common.module_table import Module
from tests.common.table import OWN, Kernel, Sizes


def first_tier(rows: Sequence[Any], *names: str) -> Any:
    """Parametrises over all rows; those that are not named are in the slow tier."""
    return pytest.mark.parametrize(
        "row", [pytest.param(r, id=r.name, marks=[] if r.name in names else [pytest.mark.slow]) for r in rows]
    )


@functools.lru_cache
def arrays(row: Kernel, sizes: Sizes, dtype: str = "float32") -> tuple[jax.Array, ...]:
    """Query, key, value, key_bias and the row's own arrays; parameters and the key bias stay float32."""
    heads, kv_heads = (sizes.heads, sizes.head_dim), (sizes.kv_heads, sizes.head_dim)
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], kind: str) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(kind)

    tokens = (sizes.batch, sizes.length)
    found = [normal((*tokens, *h), dtype) for h in (heads, kv_heads, kv_heads)]
    found.append(normal((*tokens, sizes.heads), "float32"))
    for name in row.own:
        shape, axis = OWN[name]
        array = normal(shape(sizes), "float32" if axis is None else dtype)
        found.append(1.5 + 0.3 * array if name == "alpha" else array)
    return tuple(found)


def axes(row: Kernel) -> tuple[int | None, ...]:
    """The sequence axis of every array."""
    return (1, 1, 1, 1, *(OWN[name][1] for name in row.own))


def afresh(call: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function traced and compiled anew, under the options of this moment."""
    static = "is_causal" if "is_causal" in inspect.signature(call).parameters else ()
    return jax.jit(lambda *args, **options: call.__wrapped__(*args, **options), static_argnames=static)


@functools.lru_cache
def compiled(row: Kernel, is_causal: bool = True) -> Callable[..., Any]:
    """(*arrays, mask, segment_ids) -> output, compiled once for all checks; mask and segment_ids may be None."""

    def call(*args: Any) -> Any:
        *tensors, mask, segment_ids = args
        return row.call(*tensors, mask=mask, segment_ids=segment_ids, is_causal=is_causal)

    return jax.jit(call)


def with_gradients(row: Kernel) -> Callable[..., Any]:
    """(*arrays) -> (output of the causal kernel, gradients of a loss with respect to every array)."""

    def run(*args: Any) -> Any:
        call = functools.partial(row.call, mask=None, segment_ids=None, is_causal=True)
        out, vjp = jax.vjp(call, *args)
        return out, vjp(jnp.cos(out))

    return run


@functools.lru_cache
def output_and_gradients(row: Kernel) -> Any:
    """What `with_gradients` gives for the arrays of the default sizes, on one device."""
    return jax.jit(with_gradients(row))(*arrays(row, Sizes()))


def decoding(row: Kernel, sizes: Sizes) -> Callable[..., Any]:
    """(*arrays) -> outputs of the first five tokens, four in one step and one in the next."""

    def decode(*args: Any) -> Any:
        state, outs = row.init(sizes, jnp.float32), []
        for part in (slice(0, 4), slice(4, 5)):
            new = (x if axis is None else x[:, part] for x, axis in zip(args, axes(row), strict=True))
            state, out = row.step(state, *new)
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    return decode


def naively(row: Kernel, is_causal: bool = True) -> Callable[..., Any]:
    """The reference, called alike; operation by operation, since the rows share most operations and shapes."""

    def call(*args: Any) -> Any:
        *tensors, mask, segment_ids = args
        return row.naive(*tensors, mask=mask, segment_ids=segment_ids, is_causal=is_causal)

    return call


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module as a pure function of its input and its parameters, which are arrays by their path."""

    inputs: jax.Array
    parameters: dict[str, jax.Array]
    call: Callable[..., Any]
    naive: Callable[..., Any]
    module: nnx.Module


@functools.lru_cache
def layer(row: Module, *, flax: bool, kv_heads: int = 1, dtype: str = "float32") -> Layer:
    """The row inside `jaxattn.nn.Attention`, or inside Flax's `MultiHeadAttention` (no grouped queries there)."""
    rngs, heads, head_dim, features = nnx.Rngs(0), 2, 4, 8
    module: nnx.Module
    if flax:
        module = nnx.MultiHeadAttention(
            heads,
            features,
            attention_fn=row.mechanism.attention_fn(heads, head_dim, rngs=rngs),
            dtype=jnp.dtype(dtype),
            decode=False,
            rngs=rngs,
        )
    else:
        module = Attention(
            heads, features, mechanism=row.mechanism, num_kv_heads=kv_heads, dtype=jnp.dtype(dtype), rngs=rngs
        )
    graph, state, held = nnx.split(module, nnx.Param, ...)
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    names = [".".join(str(key.key) for key in path) for path, _ in leaves]
    # Away from the symmetric initial values (biases 0, lags alike), or a wrong sign might not show.
    rng = np.random.default_rng(1)
    values = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for _, leaf in leaves]

    @functools.partial(jax.jit, static_argnames="is_causal")
    def call(x, *parameters, mask=None, segment_ids=None, is_causal=True):
        new = jax.tree.unflatten(structure, parameters)
        merged = nnx.merge(graph, _replaced(state, new), held)
        if flax:
            return merged(x, mask=None if mask is None else mask[:, None, None, :], is_causal=is_causal)
        return merged(x, token_mask=mask, segment_ids=segment_ids, is_causal=is_causal)

    core = row.core
    if row.draws:
        mechanism = module.attention_fn.mechanism if flax else module.mechanism
        core = functools.partial(core, feature_map=getattr(mechanism, "inner", mechanism).feature_map)

    def reference(x, *parameters, mask=None, segment_ids=None, is_causal=True):
        return naive.layer(
            x,
            dict(zip(names, parameters, strict=True)),
            core,
            row.own,
            reads_keys=flax,
            mask=mask,
            segment_ids=segment_ids,
            is_causal=is_causal,
        )

    inputs = jnp.asarray(rng.standard_normal((2, 10, features)), jnp.float32).astype(dtype)
    nnx.update(module, _replaced(state, jax.tree.unflatten(structure, values)))
    return Layer(inputs, dict(zip(names, values, strict=True)), call, reference, module)


def _replaced(state: nnx.State, values: Any) -> nnx.State:
    new = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(new, values)
    return new
