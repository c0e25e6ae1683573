"""Random-feature attention as a mechanism."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.parameters import HeldVariable, UndecayedParam, axis_names
from jaxattn.core.registry import MechanismRow, register_mechanism, whole_number
from jaxattn.linear import IMPLEMENTATIONS
from jaxattn.random_features.attention import (
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.random_features.components import COMPONENTS
from jaxattn.random_features.feature_map import STABILIZERS, FeatureMap, check_usable
from jaxattn.random_features.weights import WEIGHTS


class FeatureDraw(HeldVariable):
    """Random numbers of a feature map, and the state of their next redraw; not learned."""


class FeatureStatistic(HeldVariable):
    """Statistics of queries and keys, and parameters computed from them; not learned by gradient."""


Options = Mapping[str, Any] | tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class RandomFeatures(Mechanism):
    """Linear-time attention by random features: any component function on any weight matrix.

    Components with statistics start without any: oprf, sderf, aderf and saderf as posrf. While the module's
    `calibrating` is True (`model.set_attributes(calibrating=True)`, as in training), each call ends by moving the
    statistics towards those of its own queries and keys. The next call is the first to use them, so no token of a
    causal model depends on later ones. They are fixed in evaluation and decoding. The eigendecompositions of sderf
    and aderf are made in each of the first `refit_every` such calls and then in every `refit_every`-th: in between
    the statistics move on and the map stays. (Under `jax.vmap`, as over seeds, they are computed in every call, and
    used in the same ones.)

    Attributes:
        component: a name of `jaxattn.COMPONENTS`.
        weights: a name of `jaxattn.WEIGHTS`.
        num_features: M, features per head.
        draw_per_head: whether each key/value head has its own weights.
        redraw_every: calibrating calls between redraws of the random numbers; None keeps the first draw.
        momentum: of the moving average of the statistics; the first calls are averaged with equal weights.
        refit_every: calibrating calls between eigendecompositions, in components that need them.
        component_options: the component's own options, such as {"hyperbolic": True} for posrf.
        weight_options: the weight family's own options.
        stabilizer: "global", or "per_key" as in the published code, which then does not estimate softmax.
        chunk_size: tokens per chunk of the causal form; None chooses by platform.
        implementation: "xla", "pallas" (TPU), "mosaic_gpu" (NVIDIA, experimental) or None, as in
            `jaxattn.random_feature_attention`.

    Raises:
        ValueError: an unknown name, a pair that is not usable, or a number out of range.

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
    refit_every: int = 10
    component_options: Options = ()
    weight_options: Options = ()
    stabilizer: str = "global"
    chunk_size: int | None = None
    implementation: str | None = None

    def __post_init__(self):
        check_choice("component", self.component, COMPONENTS)
        check_choice("weights", self.weights, WEIGHTS)
        check_usable(self.component, self.weights)
        check_choice("stabilizer", self.stabilizer, STABILIZERS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        for name in ("num_features", "redraw_every", "refit_every", "chunk_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1; got {self.momentum}.")
        # Kept as tuples, so that the description stays hashable.
        for name in ("component_options", "weight_options"):
            object.__setattr__(self, name, tuple(dict(getattr(self, name)).items()))

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "RandomFeaturesModule":
        """The module: the arrays of the feature map, learned, drawn or from statistics."""
        heads, head_dim = sizes.kv_heads, sizes.head_dim
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
            prior = feature_map.component.prior(head_dim)
            prior = jax.tree.map(lambda x: jnp.broadcast_to(x, (heads, *x.shape)), prior)
            feature_map = feature_map.with_moments(prior)
        return RandomFeaturesModule(self, feature_map, sizes, redraw_key)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """W q and W k from R rows of weights, 2 T (N + K) H R, then Σ_j φ_k v' and φ_q·(that), 2 T (N + K) M H.

        R is M for most components. The gradient has four products with M features and two with R rows. Not counted: a
        component's own rotation, and the pairs inside a chunk of the causal form; a fast W counts as a dense one.
        """
        component = COMPONENTS[self.component]
        rows = component.rows_for(self.num_features, **dict(self.component_options))
        one = 2 * length * (num_heads + (num_kv_heads or num_heads)) * head_dim
        return Flops(one * (rows + self.num_features), one * (rows + 2 * self.num_features))


class RandomFeaturesModule(MechanismModule):
    """Holds the leaves of a `FeatureMap` as variables and calls `random_feature_attention` with it."""

    def __init__(
        self, config: RandomFeatures, feature_map: FeatureMap, sizes: LayerSizes, redraw_key: jax.Array
    ):
        super().__init__(sizes)
        self.chunk_size = config.chunk_size
        self.implementation = config.implementation
        self.redraw_every = config.redraw_every
        self.momentum = config.momentum
        self.refit_every = config.refit_every
        self.calibrating = False
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(feature_map)
        self.names = tuple("_".join(str(getattr(key, "name", key)) for key in path) for path, _ in leaves)
        for name, (path, leaf) in zip(self.names, leaves, strict=True):
            part, field = path[0].name, path[-1].name
            owner = feature_map.weights if part == "weights" else feature_map.component
            kind: type[nnx.Variable] = FeatureStatistic
            if part != "moments" and field in owner.trainable:
                kind = UndecayedParam  # their covariance is what matters, not their size
            elif part == "weights" or field in owner.random:
                kind = FeatureDraw
            if kind is UndecayedParam:
                leaf = leaf.astype(sizes.param_dtype)
            setattr(self, name, kind(leaf, **axis_names(*[None] * leaf.ndim)))
        if feature_map.component.calibrates:
            self.calls = FeatureStatistic(jnp.zeros(()), **axis_names())
        if config.redraw_every is not None:
            self.since_redraw = FeatureDraw(jnp.zeros(()), **axis_names())
            self.redraw_key = FeatureDraw(jax.random.key_data(redraw_key), **axis_names(None))

    @property
    def takes(self) -> frozenset[str]:
        """Segments, a context, and tokens cut among devices."""
        return super().takes | {"axis_name"}

    @property
    def feature_map(self) -> FeatureMap:
        """The map that the module holds."""
        leaves = [getattr(self, name)[...] for name in self.names]
        leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves]
        return jax.tree.unflatten(self.structure, leaves)

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
        query_mask: Bool[Array, "B T"] | None = None,
    ) -> None:
        """Moves the statistics towards those of these queries and keys, and fits the map to them.

        The masks are those of `AttentionInputs`.
        """
        self._calibrate(query, key, AttentionInputs(token_mask=token_mask, query_mask=query_mask), refit=None)

    def _calibrate(self, query: Array, key: Array, given: AttentionInputs, refit: Array | None) -> None:
        if self.feature_map.component.calibrates:
            calls = self.calls[...]
            # The mean over the first calls, then a moving average.
            momentum = jnp.minimum(self.momentum, calls / (calls + 1))
            feature_map = self.feature_map.calibrate(
                query,
                key,
                token_mask=given.token_mask,
                query_mask=given.query_mask,
                momentum=momentum,
                refit=refit,
                axis_name=given.axis_name,
            )
            self._hold(feature_map)
            self.calls[...] = calls + 1

    def redraw(self, key: jax.Array) -> None:
        """Replaces the random numbers; learned parameters and statistics stay."""
        self._hold(self.feature_map.resample(key))

    def _after_training_call(self, query: Array, key: Array, given: AttentionInputs) -> None:
        refit = None
        if self.feature_map.component.decomposes:
            calls = self.calls[...]
            refit = (calls < self.refit_every) | (calls % self.refit_every == 0)
        self._calibrate(query, key, given, refit)
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

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence; `mask` must be the same for all queries."""
        out = random_feature_attention(
            query,
            key,
            value,
            self.feature_map,
            key_bias=given.folded_key_bias(key.shape[1]),
            segment_ids=given.segment_ids,
            is_causal=given.is_causal,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
            axis_name=given.axis_name,
        )
        if self.calibrating:
            self._after_training_call(query, key, given)
        return out

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """Sums over the keys so far: the size does not depend on `max_length`."""
        sizes = self.sizes
        return random_feature_attention_init_state(
            batch,
            sizes.kv_heads,
            sizes.head_dim,
            self.feature_map,
            num_heads=sizes.num_heads if gated else None,
        )

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to all so far and to each other."""
        return random_feature_attention_step(
            state,
            query,
            key,
            value,
            self.feature_map,
            key_bias=given.key_bias,
            query_seq_lengths=given.num_new_tokens(),
            chunk_size=self.chunk_size,
        )


def _parse(pair: str = "oprf-orf", num_features: str = "128", redraw: str | None = None) -> RandomFeatures:
    component, dash, weights = pair.partition("-")
    if not dash:
        raise ValueError(f"features need a pair COMPONENT-WEIGHTS, such as oprf-orf; got {pair!r}")
    every = None
    if redraw is not None:
        word, _, steps = redraw.partition("=")
        if word != "redraw":
            raise ValueError(f"the third option of features is redraw=STEPS; got {redraw!r}")
        every = whole_number("redraw", steps)
    features = whole_number("the number of features", num_features)
    return RandomFeatures(component, weights, features, redraw_every=every)


def _spell(mechanism: RandomFeatures) -> tuple[str, ...]:
    redraw = () if mechanism.redraw_every is None else (f"redraw={mechanism.redraw_every}",)
    return f"{mechanism.component}-{mechanism.weights}", str(mechanism.num_features), *redraw


register_mechanism(
    MechanismRow(
        name="features",
        syntax="features[:COMPONENT-WEIGHTS[:NUMBER[:redraw=STEPS]]]",
        help="NUMBER (128) random features, drawn again every STEPS training steps if given; linear in length",
        mechanism=RandomFeatures,
        parse=_parse,
        spell=_spell,
        implementations=("linear", *IMPLEMENTATIONS[2:]),
    )
)
