"""Linear attention over blocks of tokens with a backward pass of its own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.linear.gradient import causal_gradient, whole_gradient
from jaxattn.linear.heads import over_batch
from jaxattn.linear.passes import causal_pass, empty_state, whole_pass
from jaxattn.linear.plan import Parameters, Plan
from jaxattn.linear.sums import State, ratio, rescaled


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, parameters: Parameters, x: Call, before: State | None) -> Array:
    """(B, T, K, G, V) weighted means, or (B, T, K, G, V + 1) weighted sums, of the values.

    `x` is in the form of `Call.with_key_weights`, its lengths multiples of the plan's blocks. `before` are the sums
    over keys that every query meets besides.
    """
    return _forward(plan, parameters, x, before)[0]


@partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, parameters: Parameters, x: Call, before: State | None) -> tuple[Array, Any]:
    def sequence(tree: tuple[Call, State | None]) -> Any:
        x, before = tree
        start = empty_state(plan, parameters, x) if before is None else before
        if plan.is_causal:
            _, states, out, kept = causal_pass(plan, parameters, x, start)
        else:
            states, out, kept = whole_pass(plan, parameters, x, start)
        return states, out, kept

    states, out, kept = over_batch(plan, sequence, (x, before))
    return out, (states, kept)


def _is_wrapped(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def plain(tree: Any) -> Any:
    """The arrays in what `custom_vjp` hands to a forward pass with symbolic zeros."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_wrapped)


def any_perturbed(tree: Any) -> tuple[()] | None:
    """() if any of it gets a gradient, else None: it travels in the structure of the residuals."""
    return () if any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_wrapped)) else None


def _attend_forward(plan: Plan, parameters: Any, x: Any, before: Any) -> tuple[Array, Any]:
    # Whether parameters get a gradient at all is known here only.
    learned = any_perturbed(parameters)
    parameters, x, before = plain((parameters, x, before))
    out, kept = _forward(plan, parameters, x, before)
    return out, (learned, parameters, x, before, kept)


def _attend_backward(plan: Plan, residuals: Any, grad: Any) -> tuple[Any, Call, State | None]:
    learned, parameters, x, before, (states, kept) = residuals
    learned = learned is not None
    if isinstance(grad, SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    gradient = causal_gradient if plan.is_causal else whole_gradient

    def sequence(tree: Any) -> Any:
        *residuals, grad = tree
        return gradient(plan, learned, parameters, residuals, grad)

    results = over_batch(plan, sequence, (x, states, kept, grad))
    grad_parameters, grad_before, (query, key, value, key_bias) = results
    if learned:
        # One cotangent a sequence and head: heads that share a parameter add up.
        grad_parameters = [
            g.sum(axis=0) if by_head else g.sum(axis=(0, 1))
            for g, by_head in zip(grad_parameters, plan.features.by_head, strict=True)
        ]
    else:
        grad_parameters = [jnp.zeros_like(p) for p in parameters]
    x = x.replace(query=query, key=key, value=value, key_bias=key_bias, segment_ids=None)
    if before is None:
        return grad_parameters, x, None
    if not plan.is_causal:
        # These are of the sums after all keys.
        grad_before = rescaled(grad_before, ratio(before.top, states.top))
    return grad_parameters, x, State(grad_before, jnp.zeros_like(before.top), None)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
# Compiled once a shape, so that calls outside of any jit do not compile their loops anew.
_compiled_attend = jax.jit(_attend, static_argnums=0)


def chunked_attention(plan: Plan, parameters: Parameters, x: Call, before: State | None = None) -> Array:
    """See `_attend`."""
    return _compiled_attend(plan, parameters, x, before)


# The same with the derivatives of JAX, of any order and mode, which keep every block's features.
differentiable_attention = jax.jit(
    lambda plan, parameters, x, before=None: _forward(plan, parameters, x, before)[0], static_argnums=0
)
