"""Random-feature attention as a mechanism."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism, MechanismModule, fold_mask
from jaxattn.core.padding import padding_key_bias
from jaxattn.random_features.attention import (
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.feature_map import STABILIZERS, FeatureMap
from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights import WEIGHTS


class FeatureDraw(nnx.Variable):
    """Random numbers of a feature map, and what their next redraw depends on: not learned."""


class FeatureStatistic(nnx.Variable):
    """Statistics of queries and keys, and what follows from them: not learned by gradient."""


Options = Mapping[str, Any] | tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class RandomFeatures(Mechanism):
    """Linear-time attention by random features: any component function on any weight matrix.

    Components with statistics (oprf, saderf, …) start as if queries and keys were N(0, I). While the module's
    `calibrating` is True (`model.set_attributes(calibrating=True)`; training does it), every call ends with the
    statistics moved towards those of its queries and keys. They are used from the next call on, so that in a causal
    model no token learns of later ones; in evaluation and decoding they are fixed.

    Attributes:
        component: a name of `jaxattn.COMPONENTS`.
        weights: a name of `jaxattn.WEIGHTS`.
        num_features: M, features a head.
        draw_per_head: whether every key/value head has weights of its own.
        redraw_every: calibrating calls between redraws of the random numbers; None keeps the first draw.
        momentum: share of the statistics kept at each calibrating call, once there were enough of them.
        component_options: the component's own options, such as {"hyperbolic": True} for posrf.
        weight_options: the weight family's own options.
        stabilizer: "global", or "per_key" to compute what the published code does (no estimate of softmax).
        chunk_size: tokens a chunk of the causal form; None for 64 on a CPU, 128 elsewhere.

    Raises:
        ValueError: an unknown name, or a number out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, EnergyGated, RandomFeatures
        >>> features = RandomFeatures("saderf", "fastfood", num_features=32)
        >>> attention = Attention(2, 8, mechanism=EnergyGated(inner=features), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: arXiv 2405.15310, "Spectraformer".
    """

    component: str = "oprf"
    weights: str = "orf"
    num_features: int = 128
    draw_per_head: bool = False
    redraw_every: int | None = None
    momentum: float = 0.99
    component_options: Options = ()
    weight_options: Options = ()
    stabilizer: str = "global"
    chunk_size: int | None = None

    def __post_init__(self):
        check_choice("component", self.component, COMPONENTS)
        check_choice("weights", self.weights, WEIGHTS)
        check_choice("stabilizer", self.stabilizer, STABILIZERS)
        for name in ("num_features", "redraw_every", "chunk_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1; got {self.momentum}.")
        # Kept as tuples, so that the description stays hashable.
        for name in ("component_options", "weight_options"):
            object.__setattr__(self, name, tuple(dict(getattr(self, name)).items()))

    def build(
        self,
        num_heads: int,
        head_dim: int,
        in_features: int | None,
        *,
        num_kv_heads: int | None = None,
        rngs: nnx.Rngs,
    ) -> "RandomFeaturesModule":
        """The module: the arrays of the feature map, learned, drawn or from statistics."""
        heads = num_heads if num_kv_heads is None else num_kv_heads
        key, redraw_key = jax.random.split(rngs.params())
        feature_map = FeatureMap.create(
            key,
            head_dim,
            self.num_features,
            self.component,
            self.weights,
            num_heads=heads if self.draw_per_head else None,
            component_options=dict(self.component_options),
            weight_options=dict(self.weight_options),
            stabilizer=self.stabilizer,
        )
        if feature_map.component.calibrates:
            start = jax.tree.map(lambda x: jnp.broadcast_to(x, (heads, *x.shape)), Moments.unit(head_dim))
            feature_map = feature_map.with_moments(start)
        return RandomFeaturesModule(self, feature_map, num_heads, redraw_key)


class RandomFeaturesModule(MechanismModule):
    """Holds the leaves of a `FeatureMap` as variables and calls `random_feature_attention` with it."""

    def __init__(
        self, config: RandomFeatures, feature_map: FeatureMap, num_heads: int, redraw_key: jax.Array
    ):
        self.num_heads = num_heads
        self.chunk_size = config.chunk_size
        self.redraw_every = config.redraw_every
        self.momentum = config.momentum
        self.calibrating = False
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(feature_map)
        self.names = tuple("_".join(str(getattr(key, "name", key)) for key in path) for path, _ in leaves)
        for name, (path, leaf) in zip(self.names, leaves, strict=True):
            part, field = path[0].name, path[-1].name
            owner = feature_map.weights if part == "weights" else feature_map.component
            kind: type[nnx.Variable] = FeatureStatistic
            if part != "moments" and field in owner.trainable:
                kind = nnx.Param
            elif part == "weights" or field in owner.random:
                kind = FeatureDraw
            setattr(self, name, kind(leaf, axes=(None,) * leaf.ndim))
        if feature_map.component.calibrates:
            self.calls = FeatureStatistic(jnp.zeros(()), axes=())
        if config.redraw_every is not None:
            self.since_redraw = FeatureDraw(jnp.zeros(()), axes=())
            self.redraw_key = FeatureDraw(jax.random.key_data(redraw_key), axes=(None,))

    @property
    def feature_map(self) -> FeatureMap:
        """The map that the module holds."""
        return jax.tree.unflatten(self.structure, [getattr(self, name)[...] for name in self.names])

    def _hold(self, feature_map: FeatureMap) -> None:
        for name, leaf in zip(self.names, jax.tree.leaves(feature_map), strict=True):
            variable = getattr(self, name)
            if not isinstance(variable, nnx.Param):
                variable[...] = jax.lax.stop_gradient(leaf)

    def calibrate(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        token_mask: Bool[Array, "B S"] | None = None,
    ) -> None:
        """Moves the statistics towards those of these queries and keys; early calls count more."""
        if self.feature_map.component.calibrates:
            calls = self.calls[...]
            # The mean over the first calls, then a moving average.
            momentum = jnp.minimum(self.momentum, calls / (calls + 1))
            self._hold(self.feature_map.calibrate(query, key, token_mask=token_mask, momentum=momentum))
            self.calls[...] = calls + 1

    def redraw(self, key: jax.Array) -> None:
        """Replaces the random numbers; learned parameters and statistics stay."""
        self._hold(self.feature_map.resample(key))

    def _after_training_call(self, query: Array, key: Array, token_mask: Array | None) -> None:
        self.calibrate(query, key, token_mask)
        if self.redraw_every is None:
            return
        count = self.since_redraw[...] + 1
        due = count >= self.redraw_every
        following, now = jax.random.split(jax.random.wrap_key_data(self.redraw_key[...]))
        before = self.feature_map
        after = jax.lax.cond(due, lambda: before.resample(now), lambda: before)
        self._hold(after)
        self.redraw_key[...] = jnp.where(due, jax.random.key_data(following), self.redraw_key[...])
        self.since_redraw[...] = jnp.where(due, 0, count)

    def __call__(
        self,
        query,
        key,
        value,
        *,
        inputs=None,
        key_bias=None,
        token_mask=None,
        mask=None,
        segment_ids=None,
        is_causal=False,
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence; `mask` must be the same for all queries."""
        if mask is not None:
            key_bias = fold_mask(mask, key_bias, key.shape[1])
        out = random_feature_attention(
            query,
            key,
            value,
            self.feature_map,
            key_bias=padding_key_bias(token_mask, key_bias),
            segment_ids=segment_ids,
            is_causal=is_causal,
            chunk_size=self.chunk_size,
        )
        if self.calibrating:
            self._after_training_call(query, key, token_mask)
        return out

    def init_state(self, batch: int, max_length: int, num_kv_heads: int, dtype: Any) -> Any:
        """Sums over the keys so far: the size does not depend on `max_length`.

        Every query head has its own, since a key bias may differ between query heads that share keys.
        """
        del max_length, dtype
        head_dim = self.feature_map.weights.head_dim
        return random_feature_attention_init_state(
            batch, num_kv_heads, head_dim, self.feature_map, num_heads=self.num_heads
        )

    def step(
        self, state, query, key, value, *, inputs=None, key_bias=None
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to all so far and to each other."""
        return random_feature_attention_step(
            state, query, key, value, self.feature_map, key_bias=key_bias, chunk_size=self.chunk_size
        )
