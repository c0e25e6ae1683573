"""Calls of linear attention and their naive reference, for every kind of fused kernels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from jaxattn.core.call import check_call
from jaxattn.linear.attention import How, attend_tiled
from jaxattn.linear.plan import IDENTITY
from jaxattn.testing import assert_close_to_reference, assert_matches_reference


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. `features` is (component, weights, options, number), or None for given ones of width M.

    `segments` is the number of tokens in each; 0 for a call without segments.
    """

    features: Any = ("oprf", "orf", {}, 12)
    causal: bool = True
    batch: int = 1
    length: int = 13
    key_length: int | None = None
    heads: int = 2
    kv_heads: int = 2
    width: int = 8
    value_width: int = 8
    size: float = 1.0
    bias: float | None = 3.0
    bias_heads: int = 1
    segments: int = 0
    per_head: bool = False
    stabilizer: str = "global"
    chunk: int = 8

    def arrays(self, dtype=jnp.float32):
        """(query, key, value, key_bias), the feature functions and their parameters."""
        rng = np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(rng.standard_normal(shape), dtype)

        key_length = self.key_length or self.length
        query = self.size * normal(self.batch, self.length, self.heads, self.width)
        key = self.size * normal(self.batch, key_length, self.kv_heads, self.width)
        value = normal(self.batch, key_length, self.kv_heads, self.value_width)
        bias = (self.bias or 0.0) * normal(self.batch, key_length, self.bias_heads).astype(jnp.float32)
        bias = bias.at[:, :2].set(-jnp.inf).at[:, -1].set(-jnp.inf)
        if self.features is None:
            return (jnp.exp(query), jnp.exp(key), value, bias), IDENTITY, []
        component, weights, options, number = self.features
        feature_map = jaxattn.FeatureMap.create(
            jax.random.key(0),
            self.width,
            number,
            component,
            weights,
            component_options=options,
            num_heads=self.kv_heads if self.per_head else None,
            stabilizer=self.stabilizer,
        ).calibrate(normal(1, 30, self.kv_heads, self.width), 2 * normal(1, 30, self.kv_heads, self.width))
        return (query, key, value, bias), *feature_map.functions(self.width**-0.5, self.width)

    def call(self, query, key, value, key_bias):
        """The checked call."""
        ids = jnp.broadcast_to(jnp.arange(self.length) // max(self.segments, 1), (self.batch, self.length))
        return check_call(
            query,
            key,
            value,
            key_bias=None if self.bias is None else key_bias,
            is_causal=self.causal,
            segment_ids=ids if self.segments else None,
        )


def reference(case, features, query, key, value, key_bias, *parameters):
    """Every pair of tokens, weighed relative to the largest weight that its query sees."""
    call = case.call(query, key, value, key_bias)
    axes = features.axes(), 2, None
    phi_q, _ = jax.vmap(features.query, axes, 2)(list(parameters), call.query, None)
    phi_k, scale = jax.vmap(features.key, axes, 2)(list(parameters), call.key, None)
    log_weight = scale[..., None] + (0 if call.key_bias is None else call.key_bias)  # (B, S, K, G)
    position, key_position = jnp.arange(case.length), jnp.arange(key.shape[1])
    allowed = (
        position[:, None] >= key_position if case.causal else jnp.ones((case.length, key.shape[1]), bool)
    )
    if case.segments:
        allowed &= position[:, None] // case.segments == key_position // case.segments
    seen = jnp.where(allowed[:, :, None, None], log_weight[:, None], -jnp.inf)
    top = jax.lax.stop_gradient(seen.max(axis=2, keepdims=True))
    weights = jnp.exp(seen - jnp.where(top == -jnp.inf, 0, top))
    weights *= jnp.einsum("btkgf,bskf->btskg", phi_q, phi_k)
    total = weights.sum(axis=2)[..., None]
    out = jnp.einsum("btskg,bskv->btkgv", weights, value) / jnp.where(total == 0, 1, total)
    return call.merge_heads(out)


def check(case, fused, dtype=jnp.float32, **tolerances):
    """Values and gradients of arrays and parameters against float64, of the choice of kernels `fused`."""
    args, features, parameters = case.arrays(dtype)

    @jax.jit
    def attend(query, key, value, key_bias, *parameters):
        call = case.call(query, key, value, key_bias).with_own_sums()
        repeated = features.repeat_parameters(list(parameters), call.key.shape[2])
        return call.merge_heads(attend_tiled(How(features, fused), repeated, call)).astype(dtype)

    expected = jax.jit(lambda *args: reference(case, features, *args))
    compare = assert_close_to_reference if "max_error" in tolerances else assert_matches_reference
    compare(attend, expected, (*args, *parameters), **{"check_gradients": True} | tolerances)


def checked(case, dtype=jnp.float32, **changes):
    """The checked call of a case, its features and their number: what kernels are asked about."""
    args, features, parameters = case.arrays(dtype)
    call = case.call(*args).with_own_sums().replace(**changes)
    return call, features, features.number(parameters, call.query)
