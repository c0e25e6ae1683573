"""Attention over a uniform tree by the fused kernels, with a backward pass of its own; the crown is plain XLA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.pallas.layout import arrange, bias_gradient, bias_row, restore
from jaxattn.tree import bidirectional as xla_bidirectional
from jaxattn.tree import causal as xla_causal
from jaxattn.tree.arguments import attend_planned, choose_plan
from jaxattn.tree.pallas import bidirectional, causal
from jaxattn.tree.pallas.kernels import Kernels
from jaxattn.tree.pallas.plan import Plan, Tokens
from jaxattn.tree.pallas.tiling import Fused
from jaxattn.tree.tree import Tree


@partial(jax.jit, static_argnums=0)
def attend_fused(how: Fused, call: Call) -> Array:
    """(B, T, K, G, V), of a call in the form of `Call.with_own_sums`."""
    return _attend(how, call)


def _kernels(how: Fused, call: Call) -> Kernels:
    tiling = how.tiling
    plan = Plan(
        tiling=tiling,
        length=call.query.shape[1],
        width=call.query.shape[-1],
        value_width=call.value.shape[-1],
        groups=call.query.shape[3],
        scale=call.scale,
        include_self=how.include_self,
        dtype=call.query.dtype,
    )
    if call.is_causal:
        return Kernels("causal_tree_attention", causal.attend_tile, plan, list(tiling.tiles_below))
    return Kernels("tree_attention", bidirectional.attend_tile, plan, 1)


def _tokens(call: Call) -> Tokens:
    return Tokens(
        arrange(call.query), arrange(call.key), arrange(call.value), bias_row(call.key_bias, call.key)
    )


def _crown(plan: Plan, roots: Any) -> Any:
    """What is above the roots of all subtrees, in float32, as the kernels take it."""
    tree = Tree(plan.num_roots, plan.tiling.crown, True, True)
    one = _causal_crown if isinstance(roots, causal.Nodes) else _bidirectional_crown
    return jax.vmap(partial(one, plan, tree))(roots)


def _causal_crown(plan: Plan, tree: Tree, roots: causal.Nodes) -> list[causal.Nodes]:
    means = xla_causal.Means(*(_nodes(plan, x) for x in (roots.log_weight[..., 0], roots.key, roots.value)))
    levels = xla_causal.families(tree, means)
    return [causal.Nodes(x.key, x.value, x.log_weight[..., None]) for x in levels]


def _bidirectional_crown(plan: Plan, tree: Tree, roots: bidirectional.Roots) -> bidirectional.Above:
    def grouped(arrays: list[Array]) -> Array:
        """(K, M, G, …)."""
        return jnp.stack([_nodes(plan, x) for x in arrays], axis=2)

    key, value, log_weight = (_nodes(plan, x) for x in roots.nodes)
    nodes = xla_bidirectional.Nodes(
        grouped(roots.query),
        key,
        value,
        log_weight[..., 0],
        _nodes(plan, roots.queries)[..., 0],
        grouped(roots.own)[..., 0],
    )
    levels, _ = xla_bidirectional.bottom_up(tree, nodes, [None] * tree.height, plan.scale, plan.include_self)
    heads = key.shape[0]
    shape = heads, 1, plan.groups
    start = jnp.zeros((*shape, plan.value_width), jnp.float32), jnp.ones(shape, jnp.float32)
    out, mass = xla_bidirectional.top_down(tree, levels, *start)

    def by_tile(x: Array) -> list[Array]:
        """(K, tiles, R, …) by group, of (K, M, G, …)."""
        more = plan.num_tiles * plan.tiling.roots - x.shape[1]
        x = jnp.pad(x, [(0, more if axis == 1 else 0) for axis in range(x.ndim)])
        x = x.reshape(heads, plan.num_tiles, plan.tiling.roots, *x.shape[2:])
        return [x[:, :, :, g] for g in range(plan.groups)]

    return bidirectional.Above(by_tile(out), by_tile(mass[..., None]))


def _nodes(plan: Plan, x: Array) -> Array:
    """(K, M, …) of (K, tiles, R, …)."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : plan.num_roots]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how: Fused, call: Call) -> tuple[Array, Any]:
    """The output and, to keep for the gradient, the roots."""
    kernels, tokens = _kernels(how, call), _tokens(call)
    roots = above = None
    if kernels.plan.tiling.crown:
        # Causal queries are scored, not averaged.
        roots = kernels.roots(tokens._replace(query=None) if call.is_causal else tokens)
        above = _crown(kernels.plan, roots)
    return restore(kernels.outputs(tokens, above), kernels.plan.value_width), roots


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(how: Fused, call: Call, roots: Any, grad: Array) -> Call:
    kernels, tokens, grad = _kernels(how, call), _tokens(call), arrange(grad)
    plan = kernels.plan
    above = of_roots = None
    if roots is not None:
        above, pull = jax.vjp(partial(_crown, plan), roots)
        (of_roots,) = pull(kernels.above_gradient(tokens, above, grad))
    of = kernels.tokens_gradient(tokens, above, of_roots, grad)
    return call.replace(
        query=restore(of.query, plan.width),
        key=restore(of.key, plan.width),
        value=restore(of.value, plan.value_width),
        key_bias=bias_gradient(call.key_bias, of.bias),
    )


# Derivatives of a kernel are those of the XLA form, which is the same function: second derivatives, that is.


def _in_xla(how: Fused, call: Call) -> Array:
    branching = (*how.tiling.branching, *how.tiling.crown)
    tree = Tree(call.query.shape[1], branching, True, True)
    function = xla_causal.attend_causal if call.is_causal else xla_bidirectional.attend
    plan = choose_plan(function, tree, how.include_self, "tpu")
    return jnp.moveaxis(attend_planned(plan, tree, call, [None] * tree.height), 2, 1)


@_forward.defjvp
def _(how: Fused, primals: Any, tangents: Any) -> Any:
    out, roots = _forward(how, *primals)
    _, of_out = jax.jvp(partial(_in_xla, how), primals, tangents)
    return (out, roots), (of_out.astype(out.dtype), jax.tree.map(jnp.zeros_like, roots))


@_gradient.defjvp
def _(how: Fused, primals: Any, tangents: Any) -> Any:
    (call, _, grad), (of_call, _, of_grad) = primals, tangents

    def gradient(call: Call, grad: Array) -> Call:
        return jax.vjp(partial(_in_xla, how), call)[1](grad)[0]

    _, of = jax.jvp(gradient, (call, grad), (of_call, of_grad))
    return _gradient(how, *primals), of


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: Fused, call: Call) -> Array:
    return _forward(how, call)[0]


def _attend_forward(how: Fused, call: Call) -> tuple[Array, Any]:
    out, roots = _forward(how, call)
    return out, (call, roots)


def _attend_backward(how: Fused, residuals: Any, grad: Array) -> tuple[Call]:
    return (_gradient(how, *residuals, grad),)


_attend.defvjp(_attend_forward, _attend_backward)
