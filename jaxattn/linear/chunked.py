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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, parameters: Parameters, x: Call) -> Array:
    """(B, T, K, G, V) weighted means, or (B, T, K, G, V + 1) weighted sums, of the values.

    `x` is in the form of `Call.with_key_weights`, its lengths multiples of the plan's blocks.
    """
    return _forward(plan, parameters, x)[0]


def _forward(plan: Plan, parameters: Parameters, x: Call) -> tuple[Array, Any]:
    def sequence(x: Call) -> Any:
        if plan.is_causal:
            _, states, out, kept = causal_pass(plan, parameters, x, empty_state(plan, parameters, x))
        else:
            states, out, kept = whole_pass(plan, parameters, x)
        return states, out, kept

    states, out, kept = over_batch(plan, sequence, x)
    return out, (states, kept)


def _is_wrapped(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def plain(tree: Any) -> Any:
    """The arrays in what `custom_vjp` hands to a forward pass with symbolic zeros."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_wrapped)


def any_perturbed(tree: Any) -> tuple[()] | None:
    """() if any of it gets a gradient, else None: it travels in the structure of the residuals."""
    return () if any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_wrapped)) else None


def _attend_forward(plan: Plan, parameters: Any, x: Any) -> tuple[Array, Any]:
    # Whether parameters get a gradient at all is known here only.
    learned = any_perturbed(parameters)
    parameters, x = plain((parameters, x))
    out, kept = _forward(plan, parameters, x)
    return out, (learned, parameters, x, kept)


def _attend_backward(plan: Plan, residuals: Any, grad: Any) -> tuple[Any, Call]:
    learned, parameters, x, (states, kept) = residuals
    learned = learned is not None
    if isinstance(grad, SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    gradient = causal_gradient if plan.is_causal else whole_gradient

    def sequence(tree: Any) -> Any:
        *residuals, grad = tree
        return gradient(plan, learned, parameters, residuals, grad)

    grad_parameters, (query, key, value, key_bias) = over_batch(plan, sequence, (x, states, kept, grad))
    if learned:
        # One cotangent a sequence and head: heads that share a parameter add up.
        grad_parameters = [
            g.sum(axis=0) if by_head else g.sum(axis=(0, 1))
            for g, by_head in zip(grad_parameters, plan.features.by_head, strict=True)
        ]
    else:
        grad_parameters = [jnp.zeros_like(p) for p in parameters]
    return grad_parameters, x.replace(query=query, key=key, value=value, key_bias=key_bias, segment_ids=None)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
# Compiled once a shape, so that calls outside of any jit do not compile their loops anew.
chunked_attention = jax.jit(_attend, static_argnums=0)
# The same with the derivatives of JAX, of any order and mode, which keep every block's features.
differentiable_attention = jax.jit(
    lambda plan, parameters, x: _forward(plan, parameters, x)[0], static_argnums=0
)
