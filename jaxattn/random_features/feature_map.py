"""A feature map: a component function on a weight matrix, with statistics of the data."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxattn.core.call import check_qk, check_scale, repeat_heads
from jaxattn.core.checks import check_choice, check_dtype, check_rank, check_shape
from jaxattn.core.explicit import automatic_axes, replicated
from jaxattn.core.pytree import register
from jaxattn.core.sequence import check_axis
from jaxattn.linear import FeatureFunctions, Fused, Kind, Projection
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.components.base import Component
from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights import WEIGHTS
from jaxattn.random_features.weights.base import Weights

STABILIZERS = ("global", "per_key")


def is_usable(component: str, weights: str) -> bool:
    """Whether the features of a pair estimate exp(x·y) at all."""
    return COMPONENTS[component].takes_quadrature or not WEIGHTS[weights].is_quadrature


def check_usable(component: str, weights: str) -> None:
    """Raises for a pair whose features do not estimate exp(x·y)."""
    if not is_usable(component, weights):
        accepted = ", ".join(name for name, kind in COMPONENTS.items() if kind.takes_quadrature)
        raise ValueError(
            f"component {component!r} is not usable with weights {weights!r}: these are nodes of a rule for "
            f"polynomials of low degree, unlike the features of {component}; use {accepted}, or other weights. "
            "FeatureMap.create(..., allow_unusable=True) makes the pair anyway."
        )


@register
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """φ_q and φ_k with φ_q(x)·φ_k(y) ≈ exp(x·y): any component function on any weight matrix, as a pytree.

    Make one with `create`, fit it to data with `calibrate`, redraw its random numbers with `resample`. All leaves are
    floating-point arrays.

    Attributes:
        weights: the weight matrix W; with `weight_heads` every leaf has a leading axis of key/value heads.
        component: the component function; with `component_heads` likewise.
        moments: the statistics behind the component's parameters, None before `calibrate`.
        weight_heads: how many heads have weights of their own; None if all share them.
        component_heads: how many heads have component parameters of their own; None if all share them.
        stabilizer: "global", which changes nothing but rounding, or "per_key", which reproduces the published code:
            the largest feature of every key is taken for 1, so that keys lose their scale and the result is no
            estimate of softmax attention any more.
    """

    weights: Any
    component: Any
    moments: Any
    weight_heads: int | None
    component_heads: int | None
    stabilizer: str

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_features: int,
        component: str = "oprf",
        weights: str = "orf",
        *,
        num_heads: int | None = None,
        component_options: Mapping[str, Any] | None = None,
        weight_options: Mapping[str, Any] | None = None,
        stabilizer: str = "global",
        allow_unusable: bool = False,
    ) -> "FeatureMap":
        """Draws a feature map.

        Args:
            key: a JAX random key.
            head_dim: width H of queries and keys.
            num_features: M. A component that makes r features from one row of weights gets max(1, M // r) rows: 2 for
                trigrf, 6 for hrf, 1 for the others.
            component: a name of `COMPONENTS`.
            weights: a name of `WEIGHTS`.
            num_heads: draws weights for every key/value head apart; None shares one draw.
            component_options: the component's own, such as {"hyperbolic": True} for posrf and {"positive": True} for
                poisrf and geomrf.
            weight_options: the weight family's own.
            stabilizer: "global" or "per_key".
            allow_unusable: accepts pairs that are no estimate of exp(x·y): sgq with other components than the
                exponential ones.

        Returns:
            The map, not calibrated: until it is, oprf, sderf, aderf and saderf are posrf, and poisrf and geomrf are
            shifted as for queries and keys N(0, I).

        Raises:
            ValueError: an unknown name, a size below 1, or an unusable pair.
            TypeError: an option that the component or the family does not have.

        Examples:
            >>> import jax
            >>> from jaxattn import FeatureMap
            >>> feature_map = FeatureMap.create(jax.random.key(0), 16, 32, "saderf", "fastfood")
            >>> q = jax.random.normal(jax.random.key(1), (2, 10, 4, 16))
            >>> feature_map = feature_map.calibrate(q, q)
            >>> phi, log_scale = feature_map.query(q)
            >>> phi.shape, log_scale.shape
            ((2, 10, 4, 32), (2, 10, 4))
        """
        check_choice("component", component, COMPONENTS)
        check_choice("weights", weights, WEIGHTS)
        if not allow_unusable:
            check_usable(component, weights)
        check_choice("stabilizer", stabilizer, STABILIZERS)
        for name, size in (("head_dim", head_dim), ("num_features", num_features), ("num_heads", num_heads)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}.")
        kind, family = COMPONENTS[component], WEIGHTS[weights]
        options = dict(component_options or {})
        rows = kind.rows_for(num_features, **options)

        def draw(key: PRNGKeyArray) -> tuple[Weights, Component]:
            for_weights, for_component = jax.random.split(key)
            return (
                family.create(for_weights, head_dim, rows, **dict(weight_options or {})),
                kind.create(for_component, head_dim, rows, **options),
            )

        made = draw(key) if num_heads is None else jax.vmap(draw)(jax.random.split(key, num_heads))
        drawn_weights, drawn_component = _in_float32(made)
        return cls(drawn_weights, drawn_component, None, num_heads, num_heads, stabilizer)

    @automatic_axes(replicated)
    def calibrate(
        self,
        query: Float[Array, "*B T N H"],
        key: Float[Array, "*B S K H"],
        *,
        scale: float | None = None,
        token_mask: Bool[Array, "*B S"] | None = None,
        query_mask: Bool[Array, "*B T"] | None = None,
        momentum: float | Float[Array, ""] = 0.0,
        refit: Bool[Array, ""] | None = None,
        axis_name: str | None = None,
    ) -> "FeatureMap":
        """The map with the best component parameters for these queries and keys, a set for each key/value head.

        Nothing is learned by gradient here. In a causal model use statistics of other data than what is attended to
        (a calibration set, earlier training steps): those of a sequence itself would tell every token of its future.

        Args:
            query: (B, T, N, H) or (T, N, H), as they come to the attention.
            key: (B, S, K, H) or (S, K, H); heads of queries that share a key head are pooled.
            scale: of the attention, 1/sqrt(H) when None.
            token_mask: True at keys that count; True at queries that count too if T = S and `query_mask` is None.
            query_mask: True at queries that count.
            momentum: share of the statistics so far that is kept, for a moving average; the first calibration
                ignores it.
            refit: whether the parameters follow the statistics this time, for a map that has some; None for always.
            axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens.

        Returns:
            A new map. Components without statistics (`calibrates` False) are left as they are.

        Raises:
            ValueError: a shape, dtype or `momentum` is wrong.
        """
        check_axis(axis_name)
        check_qk(query, key)
        self.check_width("query and key", query.shape[-1])
        root = _root(check_scale(scale, query.shape[-1]))
        if not isinstance(momentum, jax.Array) and not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1; got {momentum}.")
        if query_mask is None and token_mask is not None and query.shape[-3] == key.shape[-3]:
            query_mask = token_mask
        for name, array, tokens in (("token_mask", token_mask, key), ("query_mask", query_mask, query)):
            if array is not None:
                check_dtype(name, array, jnp.bool_, "boolean, True where a token counts")
                check_shape(name, array, tokens.shape[:-2], "(B, S)" if tokens is key else "(B, T)")
        if not self.component.calibrates:
            return self
        query, key = jax.lax.stop_gradient((query, key))
        if query.ndim == 3:
            query, key, token_mask, query_mask = jax.tree.map(
                lambda x: x[None], (query, key, token_mask, query_mask)
            )
        moments = Moments.of(root * query, root * key, query_mask, token_mask, axis_name)
        return self.with_moments(moments, momentum, refit)

    def with_moments(
        self, moments: Moments, momentum: Any = 0.0, refit: Bool[Array, ""] | None = None
    ) -> "FeatureMap":
        """The map with the best component parameters for given statistics of scaled queries and keys."""
        heads = moments.query_mean.shape[0]
        if self.moments is not None:
            moments = jax.tree.map(
                lambda old, new: momentum * old + (1 - momentum) * new, self.moments, moments
            )
        axis = None if self.component_heads is None else 0

        def fitted() -> Component:
            return _in_float32(jax.vmap(lambda c, m: c.calibrated(m), (axis, 0))(self.component, moments))

        component = fitted() if refit is None else jax.lax.cond(refit, fitted, lambda: self.component)
        return dataclasses.replace(self, component=component, moments=moments, component_heads=heads)

    def resample(self, key: PRNGKeyArray) -> "FeatureMap":
        """The map with new random numbers; learned parameters and statistics stay. May run inside jit."""
        for_weights, for_component = jax.random.split(key)
        weights, component = self.weights, self.component
        if self.weight_heads is None:
            weights = weights.resample(for_weights)
        else:
            weights = jax.vmap(type(weights).resample)(
                weights, jax.random.split(for_weights, self.weight_heads)
            )
        if component.random:
            if self.component_heads is None:
                component = component.resample(for_component)
            else:
                keys = jax.random.split(for_component, self.component_heads)
                component = jax.vmap(type(component).resample)(component, keys)
        return dataclasses.replace(self, weights=_in_float32(weights), component=_in_float32(component))

    def query(
        self, query: Float[Array, "*B T N H"], *, scale: float | None = None
    ) -> tuple[Float[Array, "*B T N M"], Float[Array, "*B T N"]]:
        """(values, log scale) of queries: φ_q = values · e^(log scale)."""
        return self._apply("query", query, scale)

    def key(
        self, key: Float[Array, "*B S K H"], *, scale: float | None = None
    ) -> tuple[Float[Array, "*B S K M"], Float[Array, "*B S K"]]:
        """(values, log scale) of keys: φ_k = values · e^(log scale)."""
        return self._apply("key", key, scale)

    def kernel(
        self, query: Float[Array, "*B T N H"], key: Float[Array, "*B S K H"], *, scale: float | None = None
    ) -> Float[Array, "*B N T S"]:
        """φ_q(x_i)·φ_k(y_j) for every pair, the estimate of exp(scale q_i·k_j): T×S numbers, for inspection."""
        check_qk(query, key)
        (phi_q, scale_q), (phi_k, scale_k) = self.query(query, scale=scale), self.key(key, scale=scale)
        heads = query.shape[-2]
        phi_k, scale_k = repeat_heads(phi_k, heads, axis=-2), repeat_heads(scale_k, heads, axis=-1)
        scales = jnp.moveaxis(scale_q, -1, -2)[..., :, None] + jnp.moveaxis(scale_k, -1, -2)[..., None, :]
        return jnp.einsum("...tnm,...snm->...nts", phi_q, phi_k) * jnp.exp(scales)

    @property
    def num_features(self) -> int:
        """The number of features of a token."""
        functions, parameters = self.functions(1.0, self.weights.head_dim)
        return functions.number(parameters, jax.ShapeDtypeStruct((self.weights.head_dim,), jnp.float32))

    def check_width(self, name: str, width: int) -> None:
        """Raises unless `width` is the map's."""
        if width != self.weights.head_dim:
            raise ValueError(f"{name} must have the map's width H = {self.weights.head_dim}; got {width}.")

    def _apply(self, role: str, x: Array, scale: float | None) -> tuple[Array, Array]:
        check_dtype(role, x, jnp.floating, "floating point")
        check_rank(role, x, (3, 4), "(T, N, H) or (B, T, N, H)")
        functions, parameters = self.functions(check_scale(scale, x.shape[-1]), x.shape[-1])
        function = functions.query if role == "query" else functions.key
        heads = [p.shape[0] for p, by_head in zip(parameters, functions.by_head, strict=True) if by_head]
        groups = x.shape[-2] // heads[0] if heads else 1
        if heads and x.shape[-2] != heads[0] * groups:
            raise ValueError(f"{role} must have a multiple of the map's {heads[0]} heads; got {x.shape[-2]}.")
        x = x.astype(jnp.result_type(jnp.float32, x))
        x = x.reshape(*x.shape[:-2], -1, groups, x.shape[-1])
        if heads:
            values, scales = jax.vmap(function, (functions.axes(), -3, None), (-3, -2))(parameters, x, None)
        else:
            values, scales = function(parameters, x, None)
        return values.reshape(*values.shape[:-3], -1, values.shape[-1]), scales.reshape(
            *scales.shape[:-2], -1
        )

    def functions(self, scale: float, head_dim: int) -> tuple[FeatureFunctions, list[Array]]:
        """The feature functions of one head as the kernels take them, and the arrays they need."""
        self.check_width("query and key", head_dim)
        root = _root(scale)
        used = (self.weights, self.component)
        leaves, structure = jax.tree.flatten(used)
        by_head = tuple(
            heads is not None
            for part, heads in zip(used, (self.weight_heads, self.component_heads), strict=True)
            for _ in jax.tree.leaves(part)
        )
        per_key = self.stabilizer == "per_key"
        functions = FeatureFunctions(
            _Function("query", structure, root, per_key),
            _Function("key", structure, root, per_key),
            by_head,
            self._fused(structure, root),
        )
        return functions, leaves

    def _fused(self, structure: Any, root: float) -> Fused | None:
        """The features as a function of one dense product; None if they are none, or rows have signs."""
        name = self.component.kind
        if name is None or type(self.weights).signs is not Weights.signs:
            return None
        per_key = self.stabilizer == "per_key"
        return Fused(Kind(name, root**2, not per_key), _Projection(structure, root))


@dataclasses.dataclass(frozen=True)
class _Function:
    """Features of one head as a function of arrays; equal ones compare equal, so compiled code is found again."""

    role: str
    structure: Any
    root: float
    per_key: bool

    # Traced once for all calls of equal shapes, forward and recomputed in the backward pass.
    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, parameters: Sequence[Array], x: Array, scale: Array | None) -> tuple[Array, Array]:
        weights, component = jax.tree.unflatten(self.structure, parameters)
        make = component.query if self.role == "query" else component.key
        x = x.astype(jnp.result_type(jnp.float32, x))
        # What comes back as `scale` under per_key is not the scale of the values.
        values, scale = make(weights, self.root * x, None if self.per_key else scale)
        if self.per_key:
            scale = jnp.zeros_like(scale)
        # Whatever the dtype of the parameters, features have that of the tokens.
        return values.astype(x.dtype), scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Projection:
    """The dense matrices behind the features of one head: what the fast algorithms make of the unit vectors."""

    structure: Any
    root: float

    def __call__(self, parameters: Sequence[Array]) -> Projection:
        weights, component = jax.tree.unflatten(self.structure, parameters)
        unit = self.root * jnp.eye(weights.head_dim)
        query, key = component.transform_query(unit), component.transform_key(unit)
        (of_query, offset), (of_key, _) = (component.affine(weights, x) for x in (query, key))
        plain = type(component).transform_key is Component.transform_key
        offset = jnp.broadcast_to(offset, of_key.shape[-1:])[:, None]
        return Projection(of_query.T, of_key.T, offset, None if plain else key.T)


def _root(scale: float) -> float:
    """The square root of the scale, which queries and keys are both multiplied by."""
    if scale < 0:
        raise ValueError(
            f"scale must not be negative with random features; got {scale}. Negate the query instead."
        )
    return scale**0.5


def _in_float32(tree: Any) -> Any:
    """Parameters are float32, as in Flax, also where JAX makes float64 arrays by default."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, tree)
