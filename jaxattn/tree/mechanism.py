"""Attention over a tree as a mechanism."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism, MechanismModule, fold_mask
from jaxattn.core.padding import padding_key_bias
from jaxattn.tree.attention import hierarchical_attention
from jaxattn.tree.sibling_bias import KINDS, SiblingBias
from jaxattn.tree.state import hierarchical_attention_init_state, hierarchical_attention_step
from jaxattn.tree.tree import Tree

TreeFn = Callable[[int], Tree]


@dataclasses.dataclass(frozen=True)
class Hierarchical(Mechanism):
    """Hierarchical self-attention: over a uniform tree of a given branching, or the tree that comes with the call.

    Attributes:
        branching: sizes of families from the leaves up, the last of which repeats, such as (64, 16): a uniform tree
            over whatever length comes, also in decoding; None for the tree given at every call.
        include_self: whether a token attends to itself, as in softmax; False is the published form.
        sibling_bias: what siblings add to their scores by their offset: None, "learned", "sinusoidal" or "fourier".
        tree_fn: length -> `Tree`, in place of `branching`; used where no tree comes with the call.

    Raises:
        ValueError: a family size below 2, an unknown sibling_bias, or both branching and tree_fn.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn import Tree
        >>> from jaxattn.nn import Attention, EnergyGated, Hierarchical
        >>> mechanism = EnergyGated(inner=Hierarchical((4, 2), sibling_bias="learned"))
        >>> attention = Attention(2, 8, mechanism=mechanism, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 50, 8)), is_causal=True).shape
        (1, 50, 8)
        >>> attention = Attention(2, 8, mechanism=Hierarchical(), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), tree=Tree.from_lengths([3, 2])).shape
        (1, 5, 8)

    Reference: arXiv 2509.15448, "Hierarchical self-attention".
    """

    branching: tuple[int, ...] | None = None
    include_self: bool = True
    sibling_bias: str | None = None
    tree_fn: TreeFn | None = None

    def __post_init__(self):
        check_choice("sibling_bias", self.sibling_bias, KINDS)
        if self.branching is not None:
            if self.tree_fn is not None:
                raise ValueError("branching and tree_fn both say what the tree is; give one of them.")
            object.__setattr__(self, "branching", tuple(self.branching))
            Tree.uniform(1, self.branching)  # complains of bad sizes

    def build(
        self,
        num_heads: int,
        head_dim: int,
        in_features: int | None,
        *,
        num_kv_heads: int | None = None,
        rngs: nnx.Rngs,
    ) -> "HierarchicalModule":
        """The module; its only parameters are those of the sibling bias."""
        bias = None
        if self.sibling_bias is not None:
            bias = SiblingBias(self.sibling_bias, num_heads, rngs=rngs)
        return HierarchicalModule(self, num_heads, head_dim, bias)


class HierarchicalModule(MechanismModule):
    """Holds the sibling bias and calls `hierarchical_attention`."""

    def __init__(self, config: Hierarchical, num_heads: int, head_dim: int, bias: SiblingBias | None):
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.branching = config.branching
        self.include_self = config.include_self
        self.tree_fn = config.tree_fn
        self.bias = nnx.data(bias)

    @property
    def uses_tree(self) -> bool:
        """True."""
        return True

    def _tree(self, length: int) -> Tree:
        if self.branching is not None:
            return Tree.uniform(length, self.branching)
        if self.tree_fn is None:
            raise ValueError(
                "tree must be given at the call: this mechanism has neither branching nor tree_fn; got None."
            )
        return self.tree_fn(length)

    def _biases(self, tree: Tree) -> list[Array] | None:
        return None if self.bias is None else self.bias(tree)

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
        tree: Tree | None = None,
    ) -> Float[Array, "B T N V"]:
        """Attends over the tree; `mask` must be the same for all queries."""
        if segment_ids is not None:
            raise ValueError(
                "segment_ids cannot be used with a tree, whose nodes may span segments; put the segments below one "
                "root with Tree.join, or one in a row."
            )
        if mask is not None:
            key_bias = fold_mask(mask, key_bias, key.shape[1])
        tree = self._tree(query.shape[1]) if tree is None else tree
        return hierarchical_attention(
            query,
            key,
            value,
            tree,
            key_bias=padding_key_bias(token_mask, key_bias),
            sibling_bias=self._biases(tree),
            is_causal=is_causal,
            include_self=self.include_self,
        )

    def init_state(self, batch: int, max_length: int, num_kv_heads: int, dtype: Any) -> Any:
        """The open families of a tree over `max_length` tokens: O(b log max_length) nodes, in float32."""
        del dtype
        tree = self._tree(max_length)
        return {
            "nodes": hierarchical_attention_init_state(
                batch, num_kv_heads, self.head_dim, tree, num_heads=self.num_heads
            ),
            "tree": tree,
        }

    def step(
        self, state, query, key, value, *, inputs=None, key_bias=None
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to the open families and to each other."""
        tree = state["tree"]
        nodes, out = hierarchical_attention_step(
            state["nodes"],
            query,
            key,
            value,
            tree,
            key_bias=key_bias,
            sibling_bias=self._biases(tree),
            include_self=self.include_self,
        )
        return {"nodes": nodes, "tree": tree}, out
