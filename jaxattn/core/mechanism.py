"""The protocol of attention mechanisms: a frozen description builds a module, and all modules are called alike."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.flax_mechanism import AttentionFn
from jaxattn.core.inputs import AttentionInputs, LayerSizes


class MechanismModule(nnx.Module):
    """Parameters of a mechanism; all mechanisms are called alike, so that they nest.

    Args:
        sizes: of the layer that it is in.
    """

    refusals: Mapping[str, str] = {
        "tree": "is for mechanisms that attend over one, such as Hierarchical()",
        "bias": "is for mechanisms that form the scores of single pairs, such as Softmax()",
        "segment_ids": "cannot be used here",
        "axis_name": "(tokens cut among devices, as by a mesh with an axis for them) cannot be used here",
    }

    def __init__(self, sizes: LayerSizes):
        self.sizes = sizes

    @property
    def takes(self) -> frozenset[str]:
        """What it can use of "tree", "bias", "segment_ids", "pair_mask", "context" and "axis_name".

        "pair_mask" is a `mask` that differs between queries, "context" keys of other tokens than the queries',
        "axis_name" tokens that are cut among devices.
        """
        return frozenset({"segment_ids", "context"})

    @property
    def reads_earlier_queries(self) -> bool:
        """Whether the output at a token depends on the queries of tokens before it."""
        return False

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a later key even in calls without `is_causal`."""
        return False

    @property
    def feels_common_bias(self) -> bool:
        """Whether a bias that is the same for all keys of a query changes the output, as beside a sink."""
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
        if given.query_inputs is not None and "context" not in self.takes:
            raise ValueError(
                f"context cannot be used with {type(self).__name__}, which attends (itself, or what is inside it) "
                "among the tokens of one sequence."
            )
        for name, reason in self.refusals.items():
            if getattr(given, name) is not None and name not in self.takes:
                raise ValueError(f"{name} {reason}; got it with {type(self).__name__}.")
        return self.attend(query, key, value, given)

    @abc.abstractmethod
    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """What a call does; of tree, bias and segment_ids only those in `takes` are ever given."""

    def read_tokens(
        self,
        kernel: Float[Array, "D N"] | Float[Array, "H N"],
        inputs: Float[Array, "B S D"] | None,
        key: Float[Array, "B S K H"],
    ) -> Float[Array, "B S N"]:
        """One number a token and query head: from the layer's input, or from its keys where the layer passes none.

        Raises:
            ValueError: the module was built for inputs and gets none.
        """
        if self.sizes.in_features is None:
            # Query heads that share keys read the same ones.
            grouped = kernel.reshape(kernel.shape[0], key.shape[2], -1)
            out = jnp.einsum("BSKH,HKG->BSKG", key, grouped, preferred_element_type=jnp.float32)
            return out.reshape(*key.shape[:2], -1)
        if inputs is None:
            raise ValueError(
                f"inputs must be the layer's input (B, S, D): {type(self).__name__} reads it; got None."
            )
        return jnp.einsum("BSD,DN->BSN", inputs, kernel, preferred_element_type=jnp.float32)

    @abc.abstractmethod
    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The decoding state before the first token.

        Args:
            batch: sequences decoded together.
            max_length: the most tokens that will come.
            dtype: of cached keys and values.
            gated: whether steps will come with a key bias, one a query head.
        """

    @abc.abstractmethod
    def step(
        self,
        state: Any,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K V"],
        given: AttentionInputs,
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from T new tokens to all so far and to each other, causally.

        Args:
            state: from `init_state` or an earlier step.
            query: of the new tokens.
            key: of the new tokens.
            value: of the new tokens.
            given: inputs, key_bias and token_mask of the new tokens; real ones come first in every row, and padding
                leaves no trace in the state.
        """


class GateModule(MechanismModule):
    """Base of modules around another, `inner`, which they call with more key bias, or whose output they change.

    Args:
        sizes: of the layer.
        inner: the module inside.
    """

    def __init__(self, sizes: LayerSizes, inner: MechanismModule):
        super().__init__(sizes)
        self.inner = inner

    @property
    def takes(self) -> frozenset[str]:
        """What the inner mechanism takes; tokens cut among devices where a subclass says so."""
        return self.inner.takes - {"axis_name"}

    @property
    def reads_earlier_queries(self) -> bool:
        """Whether the inner mechanism does."""
        return self.inner.reads_earlier_queries

    @property
    def is_causal(self) -> bool:
        """Whether the inner mechanism is."""
        return self.inner.is_causal

    @property
    def feels_common_bias(self) -> bool:
        """Whether the inner mechanism does."""
        return self.inner.feels_common_bias


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

    def attention_fn(self, num_heads: int, head_dim: int, *, rngs: nnx.Rngs) -> AttentionFn:
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


class Gate(Mechanism):
    """Base of the frozen dataclasses of mechanisms around another, their field `inner`."""

    inner: Mechanism

    @property
    def needs_tree(self) -> bool:
        """Whether the inner mechanism does."""
        return self.inner.needs_tree

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Those of the inner mechanism; a gate has no products of its own but projections."""
        return self.inner.flops(length, num_heads, head_dim, num_kv_heads)
