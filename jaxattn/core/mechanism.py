"""The protocol of attention mechanisms: a frozen description builds a module, and all modules are called alike."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.padding import padding_key_bias


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """Sizes of the attention layer that a mechanism is built for.

    Attributes:
        num_heads: query heads N.
        head_dim: width H of a head.
        num_kv_heads: key/value heads K; None for N.
        in_features: width D of the layer's input. None when the layer passes no `inputs`; what a mechanism would read
            from them it then reads from the keys.
        param_dtype: dtype of learned arrays.
    """

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    in_features: int | None = None
    param_dtype: Any = jnp.float32

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What comes with queries, keys and values; a mechanism raises for what it cannot use.

    Attributes:
        inputs: the layer's input at the key positions, before any projection.
        key_bias: added to the score of key j in log space; −inf removes the key.
        token_mask: True at real tokens; padding is neither attended to nor counted in any statistic.
        query_mask: the same for the queries; None where they are the tokens of the keys.
        mask: True where query i may attend to key j.
        bias: added to the scores of single pairs.
        segment_ids: tokens attend only within their segment (packing).
        tree: a `jaxattn.Tree` over the tokens, or a batch of them.
        is_causal: query i attends to keys j <= i.
    """

    inputs: Float[Array, "B S D"] | None = None
    key_bias: Float[Array, "#B S #N"] | None = None
    token_mask: Bool[Array, "B S"] | None = None
    query_mask: Bool[Array, "B T"] | None = None
    mask: Bool[Array, "#B #N #T #S"] | None = None
    bias: Float[Array, "#B #N #T #S"] | None = None
    segment_ids: Int[Array, "B S"] | None = None
    tree: Any = None
    is_causal: bool = False

    def add_key_bias(self, key_bias: Array) -> "AttentionInputs":
        """The same with `key_bias` added: how a gate passes its bias to the mechanism that it gates."""
        total = key_bias if self.key_bias is None else self.key_bias + key_bias
        return dataclasses.replace(self, key_bias=total)

    def padding_key_bias(self) -> Array | None:
        """`key_bias` with −inf at padding."""
        return padding_key_bias(self.token_mask, self.key_bias)

    def folded_key_bias(self, length: int) -> Array | None:
        """`key_bias` with −inf at padding and at the keys that `mask` (B, N, 1, S) removes.

        For mechanisms that sum over the keys before any query comes.

        Args:
            length: number of keys S.

        Raises:
            ValueError: `mask` differs from query to query.
        """
        key_bias = self.padding_key_bias()
        if self.mask is None:
            return key_bias
        if self.mask.shape[-2] != 1:
            raise ValueError(
                "mask must be the same for all queries, (B, N, 1, S): this mechanism sums over the keys before any "
                f"query comes; got shape {self.mask.shape}. is_causal, token_mask and segment_ids are accepted."
            )
        kept = jnp.moveaxis(self.mask[..., 0, :], -1, -2)
        kept = jnp.broadcast_to(kept, (*kept.shape[:-2], length, kept.shape[-1]))
        return jnp.where(kept, 0.0 if key_bias is None else key_bias, -jnp.inf)


class MechanismModule(nnx.Module):
    """Parameters of a mechanism; all mechanisms are called alike, so that they nest.

    Args:
        sizes: of the layer that it is in.
    """

    refusals: Mapping[str, str] = {
        "tree": "is for mechanisms that attend over one, such as Hierarchical()",
        "bias": "is for mechanisms that form the scores of single pairs, such as Softmax()",
        "segment_ids": "cannot be used here",
    }

    def __init__(self, sizes: LayerSizes):
        self.sizes = sizes

    @property
    def takes(self) -> frozenset[str]:
        """What it can use of "tree", "bias", "segment_ids" and "pair_mask": a `mask` that differs between queries."""
        return frozenset({"segment_ids"})

    @property
    def reads_earlier_queries(self) -> bool:
        """Whether the output at a token depends on the queries of tokens before it."""
        return False

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K V"],
        given: AttentionInputs | None = None,
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence.

        Raises:
            ValueError: something is given that the mechanism cannot use.
        """
        given = AttentionInputs() if given is None else given
        for name, reason in self.refusals.items():
            if getattr(given, name) is not None and name not in self.takes:
                raise ValueError(f"{name} {reason}; got it with {type(self).__name__}.")
        return self.attend(query, key, value, given)

    @abc.abstractmethod
    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """What a call does; of tree, bias and segment_ids only those in `takes` are ever given."""

    @abc.abstractmethod
    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The decoding state before the first token.

        Args:
            batch: sequences decoded together.
            max_length: the most tokens that will come.
            dtype: of cached keys and values.
            gated: whether steps will come with a key bias that differs between query heads that share keys.
        """

    @abc.abstractmethod
    def step(
        self,
        state: Any,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K V"],
        *,
        inputs: Float[Array, "B T D"] | None = None,
        key_bias: Float[Array, "#B T #N"] | None = None,
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from T new tokens to all so far and to each other, causally."""


class Flops(NamedTuple):
    """Floating-point operations of matrix products: a product of (a, b) and (b, c) counts 2abc."""

    forward: int
    backward: int
    """Of the gradient, without what is recomputed for it."""


class Mechanism(abc.ABC):
    """Base of the frozen dataclasses that name a mechanism and its options."""

    @abc.abstractmethod
    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> MechanismModule:
        """The module with this mechanism's parameters.

        Args:
            sizes: of the layer.
            rngs: random streams for the initial values.
        """

    @property
    def needs_tree(self) -> bool:
        """Whether every call must come with a tree."""
        return False

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Operations of one layer's attention on one sequence, without the projections before and after.

        Exponentials, divisions and sums over elements are not counted, and a causal call counts as a full one.

        Args:
            length: T, padding included.
            num_heads: N.
            head_dim: H.
            num_kv_heads: K; None for N.

        Raises:
            NotImplementedError: the mechanism does not say.
        """
        raise NotImplementedError(f"{self!r} does not say how many operations it takes.")

    def attention_fn(self, num_heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "AttentionFn":
        """This mechanism as `flax.nnx.MultiHeadAttention(attention_fn=...)`.

        Args:
            num_heads: query heads of the Flax module.
            head_dim: its `qkv_features // num_heads`.
            rngs: random streams for the mechanism's own parameters, which become part of the Flax module.

        Returns:
            A module with the signature that Flax calls.

        Examples:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> from jaxattn.nn import EnergyGated
            >>> rngs = nnx.Rngs(0)
            >>> fn = EnergyGated().attention_fn(num_heads=2, head_dim=4, rngs=rngs)
            >>> mha = nnx.MultiHeadAttention(2, 8, attention_fn=fn, decode=False, rngs=rngs)
            >>> mha(jnp.ones((1, 5, 8)), is_causal=True).shape
            (1, 5, 8)
        """
        return AttentionFn(self.build(LayerSizes(num_heads, head_dim), rngs=rngs))


class AttentionFn(nnx.Module):
    """Adapts a mechanism to the call that `flax.nnx.MultiHeadAttention` makes.

    Of Flax's mask (B, N, T, S), keys that no query may see and queries that see no key are padding, which no
    statistic and no neighbour reads. A mask (B, 1, 1, S) says nothing of the queries: for self-attention over padding
    on the left give `nnx.make_attention_mask(keep, keep)`.
    """

    def __init__(self, mechanism: MechanismModule):
        self.mechanism = mechanism

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = True,
        dtype: Any = None,
        precision: Any = None,
        module: nnx.Module | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "B T N H"]:
        """Attends; the arguments are those of `flax.nnx.dot_product_attention`.

        Raises:
            ValueError: the layer has other heads than the mechanism was built for, or something is asked that these
                kernels cannot do: dropout of weights, stored weights, a bias on the scores, a `precision`, or
                `is_causal` where queries and keys are not the same tokens.
        """
        sizes = self.mechanism.sizes
        for name, array in (("query", query), ("key", key)):
            if array.shape[-2:] != (sizes.num_heads, sizes.head_dim):
                raise ValueError(
                    f"{name} must have the heads that attention_fn was made for, (num_heads, head_dim) = "
                    f"{(sizes.num_heads, sizes.head_dim)}; got {array.shape[-2:]}."
                )
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate must be 0 here: no T×S weights exist to drop; got {dropout_rate}. "
                "Use dropout on the layer's output instead."
            )
        for name, given, reason in (
            ("sow_weights", module, "no T×S weights exist to store"),
            ("bias", bias, "attention_fn takes none; use jaxattn's kernels directly"),
            ("precision", precision, "products are accumulated in float32"),
        ):
            if given is not None:
                raise ValueError(f"{name} must not be set: {reason}.")
        length, key_length = query.shape[1], key.shape[1]
        if is_causal and length != key_length:
            raise ValueError(
                f"is_causal needs queries and keys of the same tokens; got T = {length} and S = {key_length}. In a "
                "Flax layer with decode=True leave is_causal out: its mask of the cache is causal."
            )
        if self.mechanism.reads_earlier_queries and length == 1 < key_length:
            raise ValueError(
                f"query must come with the queries before it, which this mechanism reads; got T = 1 and S = "
                f"{key_length}, as in a Flax layer with decode=True. Decode with jaxattn.nn.Attention."
            )
        if dtype is not None:
            query, key, value = (x.astype(dtype) for x in (query, key, value))
        token_mask = query_mask = None
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            token_mask = jnp.broadcast_to(mask.any(axis=(-3, -2)), key.shape[:2])
            seen = mask.any(axis=(-3, -1)) if mask.shape[-2] > 1 else jnp.ones((1, 1), bool)
            query_mask = jnp.broadcast_to(seen, query.shape[:2])
        return self.mechanism(
            query,
            key,
            value,
            AttentionInputs(token_mask=token_mask, query_mask=query_mask, mask=mask, is_causal=is_causal),
        )
