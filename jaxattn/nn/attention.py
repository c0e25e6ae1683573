"""Multi-head attention with any mechanism inside, to the tokens themselves or to a context."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_rank, check_shape, check_token_mask
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import UNDECAYED, Initializer, axis_names
from jaxattn.nn.context import ProjectedContext
from jaxattn.nn.layers import DEFAULT_INIT, check_sizes, product_of_matrices
from jaxattn.nn.sequence import attend
from jaxattn.nn.sharding import constrain, sequence_axis
from jaxattn.positions import Rotary
from jaxattn.softmax.mechanism import Softmax
from jaxattn.tree import Tree


class Attention(nnx.Module):
    """Multi-head attention: project, normalise and rotate if asked, attend by `mechanism`, project back.

    Self-attention, or cross-attention in calls with `context`.

    Args:
        num_heads: query heads N.
        in_features: width D of the input.
        mechanism: what happens between the projections, e.g. `Softmax()` or `EnergyGated()`.
        num_kv_heads: key/value heads K, a divisor of N; None for N.
        head_dim: width H of a head; None for D / N.
        out_features: width of the output; None for D.
        qk_norm: initial gain of an RMSNorm over each query and key, with one learned gain per coordinate; None for no
            normalisation. It bounds |q| and |k|, on which the error of random features depends (see
            `jaxattn.diagnose`).
        projection_norm: apply LayerNorm over each head of the queries, keys and values after the projections.
        query_residual: add the queries to the attention's output, before the output projection.
        rotary: a `Rotary` position embedding of queries and keys, or its base (10000 is usual); None for none.
        use_bias: whether the projections have biases.
        kernel_init: initial values of the query, key and value projections.
        out_init: initial values of the output projection.
        dtype: dtype of the computation; None follows the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: K does not divide N, N does not divide D though head_dim is None, or a size or qk_norm is not
            positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, EnergyGated
        >>> attention = Attention(4, 32, mechanism=EnergyGated(), num_kv_heads=2, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 10, 32)), is_causal=True).shape
        (2, 10, 32)
        >>> attention(jnp.ones((2, 10, 32)), context=jnp.ones((2, 7, 32))).shape
        (2, 10, 32)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        *,
        mechanism: Mechanism | None = None,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        out_features: int | None = None,
        qk_norm: float | None = None,
        projection_norm: bool = False,
        query_residual: bool = False,
        rotary: Rotary | float | None = None,
        use_bias: bool = True,
        kernel_init: Initializer = DEFAULT_INIT,
        out_init: Initializer = DEFAULT_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        out_features = in_features if out_features is None else out_features
        check_sizes(num_heads=num_heads, in_features=in_features, out_features=out_features)
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads = {num_heads}; got {num_kv_heads}.")
        if head_dim is None:
            if in_features % num_heads:
                raise ValueError(
                    f"in_features must be a multiple of num_heads = {num_heads} unless head_dim is given; "
                    f"got {in_features}."
                )
            head_dim = in_features // num_heads
        check_sizes(head_dim=head_dim)
        if qk_norm is not None and qk_norm <= 0:
            raise ValueError(f"qk_norm must be None or a positive gain; got {qk_norm}.")
        self.num_kv_heads = num_kv_heads
        self.query_residual = query_residual
        self.rotary = Rotary(rotary) if isinstance(rotary, (int, float)) else rotary

        def project(heads: int, name: str) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                in_features,
                (heads, head_dim),
                use_bias=use_bias,
                kernel_init=kernel_init,
                kernel_metadata=axis_names("embed", name, "head_dim"),
                bias_metadata=axis_names(name, "head_dim") | UNDECAYED,
                dtype=dtype,
                param_dtype=param_dtype,
                dot_general=product_of_matrices,
                rngs=rngs,
            )

        self.query = project(num_heads, "heads")
        self.key = project(num_kv_heads, "kv_heads")
        self.value = project(num_kv_heads, "kv_heads")
        self.out = nnx.LinearGeneral(
            (num_heads, head_dim),
            out_features,
            axis=(-2, -1),
            use_bias=use_bias,
            kernel_init=out_init,
            kernel_metadata=axis_names("heads", "head_dim", "embed"),
            bias_metadata=axis_names("embed"),
            dtype=dtype,
            param_dtype=param_dtype,
            dot_general=product_of_matrices,
            rngs=rngs,
        )

        def normalise() -> nnx.RMSNorm | None:
            if qk_norm is None:
                return None
            return nnx.RMSNorm(
                head_dim,
                scale_init=nnx.initializers.constant(qk_norm),
                scale_metadata=axis_names("head_dim"),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        def standardise() -> nnx.LayerNorm:
            return nnx.LayerNorm(
                head_dim,
                scale_metadata=axis_names("head_dim"),
                bias_metadata=axis_names("head_dim"),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.query_norm, self.key_norm = nnx.data(normalise()), nnx.data(normalise())
        self.projection_norms = nnx.List([standardise() for _ in range(3 if projection_norm else 0)])
        sizes = LayerSizes(num_heads, head_dim, num_kv_heads, in_features, param_dtype)
        self.mechanism = (mechanism or Softmax()).build(sizes, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        context: Float[Array, "B S D"] | ProjectedContext | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
        token_mask: Bool[Array, "B T"] | None = None,
        mask: Bool[Array, "#B #N #T #S"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        is_causal: bool = False,
        tree: Tree | None = None,
    ) -> Float[Array, "B T _"]:
        """Attends over the whole sequence, or from it to a context.

        Args:
            x: the layer input.
            context: what the keys and values are made of, where not of x (cross-attention); or the same projected
                before, by `project_context`.
            context_mask: True at the context's real tokens.
            context_positions: positions of the context for the rotation, if there is one; None for 0 to S − 1.
            token_mask: True at real tokens; padding is neither attended nor counted in any statistic.
            mask: which (query, key) pairs may meet, (B, N, T, S), with S = T without a context.
            segment_ids: tokens meet only within their segment (packing).
            positions: positions in tokens for the rotation, if there is one; None for 0 to T − 1.
            is_causal: a token meets only itself and earlier tokens.
            tree: over the T tokens, or a batch of B trees, for a mechanism that attends over one.

        Raises:
            ValueError: something is given that the mechanism cannot use, such as a tree with softmax, or that a
                context excludes; positions without a rotation.
        """
        x = _zero_padding(x, token_mask)
        self._refuse_unused(positions=positions)
        of_context = {"context_mask": context_mask, "context_positions": context_positions}
        if context is None:
            refuse("context", of_context)
            key, value = self._keys_and_values(x, positions)
            given = AttentionInputs(
                inputs=x,
                token_mask=token_mask,
                mask=mask,
                segment_ids=segment_ids,
                tree=tree,
                is_causal=is_causal,
            )
        else:
            own = {"segment_ids": segment_ids, "is_causal": is_causal or None, "tree": tree}
            refuse("self-attention, without a context", own)
            context = self.project_context(context, **of_context)
            key, value = context.key, context.value
            given = AttentionInputs(
                inputs=context.inputs,
                token_mask=context.token_mask,
                # Never None: the masks of the queries and of the context have nothing to do with each other.
                query_mask=jnp.ones(x.shape[:2], bool) if token_mask is None else token_mask,
                query_inputs=x,
                mask=mask,
            )
        return self._attend(self._queries(x, positions), key, value, given)

    def project_context(
        self,
        context: Float[Array, "B S D"] | ProjectedContext,
        *,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
    ) -> ProjectedContext:
        """Keys and values of a context, for any number of calls that attend to it; arguments as in a call."""
        if isinstance(context, ProjectedContext):
            of_context = {"context_mask": context_mask, "context_positions": context_positions}
            refuse("a context that is not projected yet", of_context)
            return context
        check_rank("context", context, (3,), "(B, S, D)")
        check_shape("context", context, (*context.shape[:2], *self.key.in_features), "(B, S, D)")
        self._refuse_unused(context_positions=context_positions)
        context = _zero_padding(context, context_mask, "context_mask", "(B, S)")
        key, value = self._keys_and_values(context, context_positions)
        return ProjectedContext(key, value, context, context_mask)

    def init_state(self, batch: int, max_length: int, dtype: Any = jnp.float32) -> dict[str, Any]:
        """The decoding state for `batch` sequences of at most `max_length` tokens."""
        return {
            "mechanism": self.mechanism.init_state(batch, max_length, dtype),
            "position": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: dict[str, Any],
        x: Float[Array, "B T D"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B T _"]]:
        """Attends causally from T new tokens to all so far: the same result as the whole pass with is_causal.

        Over a mesh whose rules cut tokens among devices, every device has its part of the cache of softmax and lags,
        by position. Other states are whole on every device; all but that of `normalization="prefix"` are small.

        Args:
            state: from `init_state` or an earlier step.
            x: the layer input at the new tokens.
            token_mask: True at real tokens, which come first in every row; the others leave no trace. None if all
                are real.

        Raises:
            ValueError: the devices do not divide the cache.
        """
        x = _zero_padding(x, token_mask)
        start = state["position"]
        positions = start[:, None] + jnp.arange(x.shape[1])
        query, (key, value) = self._queries(x, positions), self._keys_and_values(x, positions)
        _, axis = sequence_axis(query) or (None, None)
        given = AttentionInputs(inputs=x, token_mask=token_mask, is_causal=True, cache_axis=axis)
        mechanism, out = self.mechanism.step(state["mechanism"], query, key, value, given)
        out = self.out(out + query if self.query_residual else out)
        return {"mechanism": mechanism, "position": given.advance(start, x.shape[1])}, out

    def _attend(self, query: Array, key: Array, value: Array, given: AttentionInputs) -> Array:
        out = attend(self.mechanism, query, key, value, given)
        return self.out(out + query if self.query_residual else out)

    def _refuse_unused(self, **positions: Any) -> None:
        if self.rotary is None:
            refuse("attention with a rotary position embedding", positions)

    def _queries(self, x: Array, positions: Array | None) -> Array:
        query = constrain(self.query(x), "batch", "sequence", "heads", None)
        if len(self.projection_norms):
            query = self.projection_norms[0](query)
        if self.query_norm is not None:
            query = self.query_norm(query)
        return query if self.rotary is None else self.rotary(query, positions)

    def _keys_and_values(self, x: Array, positions: Array | None) -> tuple[Array, Array]:
        key, value = (constrain(f(x), "batch", "sequence", "kv_heads", None) for f in (self.key, self.value))
        if len(self.projection_norms):
            key, value = self.projection_norms[1](key), self.projection_norms[2](value)
        if self.key_norm is not None:
            key = self.key_norm(key)
        return key if self.rotary is None else self.rotary(key, positions), value


def _zero_padding(
    x: Array, token_mask: Array | None, name: str = "token_mask", layout: str = "(B, T)"
) -> Array:
    """0 at padding, where a NaN would reach the projections' gradients."""
    if token_mask is None:
        return x
    check_token_mask(token_mask, x.shape[:2], name, layout)
    return jnp.where(token_mask[..., None], x, 0)


def refuse(needed: str, arguments: dict[str, Any]) -> None:
    """Raises if one of the arguments is given."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} is for {needed}; got {value if value is True else type(value).__name__}."
            )
