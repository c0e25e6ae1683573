"""What every attention mechanism is: a frozen description that builds a module with one calling convention."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class MechanismModule(nnx.Module):
    """Holds a mechanism's parameters; all mechanisms are called alike, which is what lets them nest.

    `inputs` is the layer's input at the key positions, before any projection; mechanisms that read the tokens
    themselves (the energy gate) use it and the others do not need it. Where `uses_tree` is True, the call also
    takes `tree`, a `jaxattn.Tree` over the tokens or a batch of them.
    """

    @property
    def uses_tree(self) -> bool:
        """Whether the call takes a tree."""
        return False

    @property
    def takes_bias(self) -> bool:
        """Whether the call takes `bias`, (B, N, T, S) or what broadcasts to it, added to scores of single pairs."""
        return False

    @property
    def takes_pair_mask(self) -> bool:
        """Whether `mask` may differ from query to query."""
        return False

    @abc.abstractmethod
    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K V"],
        *,
        inputs: Float[Array, "B S D"] | None = None,
        key_bias: Float[Array, "#B S #N"] | None = None,
        token_mask: Bool[Array, "B S"] | None = None,
        mask: Bool[Array, "#B #N #T #S"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""

    @abc.abstractmethod
    def init_state(self, batch: int, max_length: int, num_kv_heads: int, dtype: Any) -> Any:
        """The decoding state before the first token."""

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


class Mechanism(abc.ABC):
    """Base of the frozen dataclasses that name a mechanism and its options."""

    @abc.abstractmethod
    def build(
        self,
        num_heads: int,
        head_dim: int,
        in_features: int | None,
        *,
        num_kv_heads: int | None = None,
        rngs: nnx.Rngs,
    ) -> MechanismModule:
        """The module with this mechanism's parameters.

        Args:
            num_heads: query heads N.
            head_dim: width H of a head.
            in_features: width of the layer input that is passed as `inputs`; None when no inputs will be
                passed, and what would be read from them is then read from the keys.
            num_kv_heads: key/value heads K, for mechanisms that keep something for each; None for N.
            rngs: the random streams for the initial values.
        """

    def attention_fn(self, num_heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "AttentionFn":
        """This mechanism as `flax.nnx.MultiHeadAttention(attention_fn=...)`.

        Args:
            num_heads: query heads of the Flax module.
            head_dim: its `qkv_features // num_heads`.
            rngs: the random streams for the mechanism's own parameters, which become part of the Flax module.

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
        return AttentionFn(self.build(num_heads, head_dim, None, rngs=rngs))


class AttentionFn(nnx.Module):
    """Adapts a mechanism to the call that `flax.nnx.MultiHeadAttention` makes."""

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
        dropout_rate: float = 0.0,
        deterministic: bool = True,
        module: nnx.Module | None = None,
        is_causal: bool = False,
        **_: Any,
    ) -> Float[Array, "B T N H"]:
        """Attends; what these kernels cannot do (weights dropout, sown weights, a score bias) raises.

        The remaining keywords of Flax (`dtype`, `precision`, `dropout_rng`, ...) only matter together with
        those: the arrays arrive in the wanted dtype already.
        """
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate must be 0 here: no T×S weights exist to drop; got {dropout_rate}. "
                "Use dropout on the layer's output instead."
            )
        if module is not None:
            raise ValueError("sow_weights must be False: no T×S weights exist to store.")
        if bias is not None:
            raise ValueError("bias is not accepted through attention_fn; use jaxattn's kernels directly.")
        token_mask = None
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            # A key that no query of any head may see is padding, and padding must not enter statistics.
            token_mask = jnp.broadcast_to(mask.any(axis=(-3, -2)), key.shape[:2])
        return self.mechanism(query, key, value, token_mask=token_mask, mask=mask, is_causal=is_causal)


def fold_mask(mask: Array, key_bias: Array | None, length: int) -> Array:
    """A mask (B, N, 1, S) as a key bias; one that depends on the query raises."""
    if mask.shape[-2] != 1:
        raise ValueError(
            "mask must be the same for all queries, (B, N, 1, S): this mechanism sums keys up "
            f"before queries come; got shape {mask.shape}. is_causal, token_mask and segment_ids are accepted."
        )
    kept = jnp.moveaxis(mask[..., 0, :], -1, -2)
    kept = jnp.broadcast_to(kept, (*kept.shape[:-2], length, kept.shape[-1]))
    return jnp.where(kept, 0.0 if key_bias is None else key_bias, -jnp.inf)
