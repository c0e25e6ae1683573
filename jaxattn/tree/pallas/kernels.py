"""The four kernels of attention over a uniform tree, each over all tiles, for both forms."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, arranged, compiler_params
from jaxattn.tree.pallas.levels import Leaves, read_blocks, read_leaves, write_blocks
from jaxattn.tree.pallas.plan import Plan, Tokens

# (plan, leaves, above, n) -> (roots, outputs (S, V, W) by group) of tile n.
Attend = Callable[[Plan, Leaves, Any, Any], tuple[Any, list[Array]]]


class Kernels(NamedTuple):
    """The kernels of one form.

    Attributes:
        name: of the form.
        attend: the attention of a tile.
        plan: of the call.
        spans: how many tiles share an entry of what is above. Roots are a pytree of float32 arrays (B, K, tiles, …);
            what is above them is one of (B, K, entries, …), of which `spans` is a prefix.
    """

    name: str
    attend: Attend
    plan: Plan
    spans: Any

    def roots(self, tokens: Tokens) -> Any:
        """What the crown needs to know of the subtrees: one pass over the tokens."""

        def kernel(tokens: Tokens, roots: Any) -> None:
            n = pl.program_id(2)
            found, _ = self.attend(self.plan, read_leaves(self.plan, tokens, n), None, n)
            _write(roots, found)

        def tile() -> Any:
            return self.attend(self.plan, _zero_leaves(self.plan, tokens.query is not None), None, 0)[0]

        lead = (*tokens.key.shape[:2], self.plan.num_tiles)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), jnp.float32), jax.eval_shape(tile)
        )
        return self._call("roots", kernel, (tokens,), (), shapes, _specs(shapes), products=1)

    def outputs(self, tokens: Tokens, above: Any) -> Array:
        """The output by `arrange`: one pass over the tokens."""
        plan = self.plan

        def kernel(tokens: Tokens, above: Any, out: Any) -> None:
            n = pl.program_id(2)
            _, found = self.attend(plan, read_leaves(plan, tokens, n), _read(above), n)
            for g, x in enumerate(found):
                write_blocks(plan, out, plan.value_width, x, g)

        batch, heads = tokens.key.shape[:2]
        out = arranged((batch, plan.length, heads, plan.groups, plan.value_width), tokens.value.dtype)
        operands, specs = (tokens, above), (_specs(above, self.spans),)
        return self._call("outputs", kernel, operands, specs, out, self._output_specs(), products=2)

    def above_gradient(self, tokens: Tokens, above: Any, grad: Array) -> Any:
        """Cotangents of what is above, from that of the output."""

        def kernel(tokens: Tokens, above: Any, grad: Any, of_above: Any) -> None:
            n = pl.program_id(2)
            leaves = read_leaves(self.plan, tokens, n)
            _, pull = jax.vjp(lambda above: self.attend(self.plan, leaves, above, n)[1], _read(above))
            found = pull(self._read_grad(grad, n))[0]
            jax.tree.map(functools.partial(_add, n), self.spans, of_above, found)

        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), above)
        specs = _specs(above, self.spans)
        # Tiles one after another: those of one family add to what stays in VMEM.
        operands, in_specs = (tokens, above, grad), (specs, self._output_specs())
        return self._call(
            "above_gradient", kernel, operands, in_specs, shapes, specs, products=3, tiles="arbitrary"
        )

    def tokens_gradient(self, tokens: Tokens, above: Any, of_roots: Any, grad: Array) -> Tokens:
        """Cotangents of the tokens, from those of the roots (None if there is no crown) and of the output."""
        plan = self.plan

        def kernel(tokens: Tokens, above: Any, of_roots: Any, grad: Any, of_tokens: Tokens) -> None:
            n = pl.program_id(2)
            leaves, above, given = read_leaves(plan, tokens, n), _read(above), tokens.bias is not None

            def attend(query: Any, key: Array, value: Array, log_weight: Array | None) -> Any:
                found = Leaves(query, key, value, leaves.log_weight if log_weight is None else log_weight)
                roots, out = self.attend(plan, found, above, n)
                return out if of_roots is None else (roots, out)

            _, pull = jax.vjp(attend, *leaves[:3], leaves.log_weight if given else None)
            of_out = self._read_grad(grad, n)
            query, key, value, log_weight = pull(of_out if of_roots is None else (_read(of_roots), of_out))
            for g, x in enumerate(query):
                write_blocks(plan, of_tokens.query, plan.width, x, g)
            write_blocks(plan, of_tokens.key, plan.width, key)
            write_blocks(plan, of_tokens.value, plan.value_width, value)
            if of_tokens.bias is not None:
                write_blocks(plan, of_tokens.bias, 1, log_weight)

        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tokens)
        operands = tokens, above, of_roots, grad
        in_specs = _specs(above, self.spans), _specs(of_roots), self._output_specs()
        return self._call(
            "tokens_gradient", kernel, operands, in_specs, shapes, plan.specs(tokens), products=6
        )

    def _read_grad(self, grad: Any, n: Any) -> list[Array]:
        return [read_blocks(self.plan, grad, self.plan.value_width, n, g) for g in range(self.plan.groups)]

    def _output_specs(self) -> pl.BlockSpec:
        return Blocks(self.plan.tiling.chunk).tokens(self.plan.value_width, self.plan.groups)

    def _call(
        self,
        name: str,
        kernel: Any,
        operands: tuple[Any, ...],
        in_specs: tuple[Any, ...],
        shapes: Any,
        specs: Any,
        products: int,
        tiles: Literal["parallel", "arbitrary"] = "parallel",
    ) -> Any:
        """`operands`: the tokens, and what `in_specs` are of; `products`: of all pairs of tokens of a block."""
        plan, tokens = self.plan, operands[0]
        batch, heads = tokens.key.shape[:2]
        grid = (batch, heads, plan.num_tiles)
        pairs = math.prod(grid) * plan.groups * plan.tiling.chunk * plan.tiling.block
        moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((operands, shapes)))
        (found,) = pl.pallas_call(
            kernel,
            out_shape=(shapes,),
            grid=grid,
            in_specs=(plan.specs(tokens), *in_specs),
            out_specs=(specs,),
            compiler_params=compiler_params(tiles),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * plan.width, transcendentals=pairs, bytes_accessed=moved
            ),
            name=f"{self.name}_{name}",
        )(*operands)
        return found


def _zero_leaves(plan: Plan, has_queries: bool) -> Leaves:
    lead, width = plan.tiling.num_blocks, plan.tiling.block
    sizes = plan.width, plan.value_width, 1
    key, value, row = (jnp.zeros((lead, size, width), jnp.float32) for size in sizes)
    return Leaves([key] * plan.groups if has_queries else [], key, value, row)


def _specs(arrays: Any, spans: Any = 1) -> Any:
    """Of the blocks of arrays (B, K, entries, …), each the entry of as many tiles as `spans` says; None of None."""

    def of_span(span: int, arrays: Any) -> Any:
        blocks = Blocks(1, lambda n: lax.div(n, jnp.int32(span)))
        return jax.tree.map(lambda x: blocks.state(*x.shape[3:]), arrays)

    return None if arrays is None else jax.tree.map(of_span, spans, arrays)


def _read(refs: Any) -> Any:
    return jax.tree.map(lambda ref: ref[...], refs)


def _add(n: Any, span: int, refs: Any, arrays: Any) -> None:
    """Writes, or adds to what earlier ones of `span` tiles wrote."""
    first = lax.rem(n, jnp.int32(span)) == 0
    jax.tree.map(lambda ref, x: ref.__setitem__(..., jnp.where(first, x, ref[...] + x)), refs, arrays)


def _write(refs: Any, arrays: Any) -> None:
    jax.tree.map(lambda ref, x: ref.__setitem__(..., x), refs, arrays)
