"""Errors of kernels against themselves in float64, printed as lines of JSON: a process of its own for each checkout.

It uses nothing but the functions that every version of the package has.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxattn

SIZES = {"batch": 1, "tokens": 3000, "heads": 2, "head_dim": 64, "features": 128}
_SHAPE = tuple(SIZES[name] for name in ("batch", "tokens", "heads", "head_dim"))
_GIVEN = (*_SHAPE[:3], SIZES["features"])
_OUTPUTS = ("out", "query", "key", "value")  # the last three are gradients


def use_accelerator_plan() -> None:
    """Blocks and dtypes of products as on an accelerator without fused kernels, whatever this process runs on."""

    def on_gpu(*args: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
        return branches.get("cuda", default)(*args)

    jax.lax.platform_dependent = on_gpu  # type: ignore[assignment]
    jax.default_backend = lambda: "gpu"  # what older versions ask


def kernels() -> dict[str, tuple[Callable[..., Any], tuple[int, ...], bool]]:
    """Functions of (state, query, key, value, is_causal), the shape of queries, and whether these are features."""
    tree = jaxattn.Tree.uniform(SIZES["tokens"], (16, 16, 16))

    def linear(_: Any, query: Any, key: Any, value: Any, is_causal: bool) -> Any:
        return jaxattn.linear_attention(query, key, value, is_causal=is_causal)

    def features(state: Any, query: Any, key: Any, value: Any, is_causal: bool) -> Any:
        return jaxattn.random_feature_attention(query, key, value, state, is_causal=is_causal)

    def over_tree(_: Any, query: Any, key: Any, value: Any, is_causal: bool) -> Any:
        return jaxattn.hierarchical_attention(query, key, value, tree, is_causal=is_causal)

    return {
        "linear": (linear, _GIVEN, True),
        "features:oprf-orf:128": (features, _SHAPE, False),
        "tree:16x16x16": (over_tree, _SHAPE, False),
    }


def errors(name: str, is_causal: bool, dtype: str) -> dict[str, float]:
    """||x − x₆₄|| / ||x₆₄|| of the output and of the gradients, for inputs that are exact in `dtype`."""
    function, shape, positive = kernels()[name]
    draws = zip(jax.random.split(jax.random.key(0), 4), (shape, shape, _SHAPE, _SHAPE), strict=True)
    query, key, value, cotangent = (jax.random.normal(draw, size, jnp.float32) for draw, size in draws)
    state: Any = jaxattn.FeatureMap.create(jax.random.key(1), SIZES["head_dim"], SIZES["features"])
    state = state.calibrate(query, key) if shape == _SHAPE else None
    if positive:
        query, key = jnp.abs(query), jnp.abs(key)
    inputs = [x.astype(dtype) for x in (query, key, value, cotangent)]

    @partial(jax.jit, static_argnums=0)
    def run(is_causal: bool, state: Any, query: Any, key: Any, value: Any, cotangent: Any) -> Any:
        out, vjp = jax.vjp(lambda *x: function(state, *x, is_causal), query, key, value)
        return (out, *vjp(cotangent))

    found = run(is_causal, state, *inputs)
    with jax.enable_x64(True):
        in_float64 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)  # noqa: E731
        exact = run(is_causal, in_float64(state), *in_float64(inputs))
        norms = [
            (float(jnp.linalg.norm((x.astype(jnp.float64) - y).ravel())), float(jnp.linalg.norm(y.ravel())))
            for x, y in zip(found, exact, strict=True)
        ]
    return {name: float(f"{error / norm:.3g}") for name, (error, norm) in zip(_OUTPUTS, norms, strict=True)}


if __name__ == "__main__":
    plan = sys.argv[1]
    if plan == "accelerator":
        use_accelerator_plan()
    for name in kernels():
        for is_causal in (True, False):
            for dtype in ("float32", "bfloat16"):
                row = {"kernel": name, "causal": is_causal, "dtype": dtype, "plan": plan}
                print(json.dumps(row | {"errors": errors(name, is_causal, dtype)}), flush=True)
