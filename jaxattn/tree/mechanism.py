"""Attention over a tree as a mechanism."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.pallas.choice import IMPLEMENTATIONS
from jaxattn.core.registry import MechanismRow, register_mechanism, whole_number
from jaxattn.tree.attention import hierarchical_attention
from jaxattn.tree.sibling_bias import KINDS, SiblingBias
from jaxattn.tree.state import hierarchical_attention_init_state, hierarchical_attention_step
from jaxattn.tree.tree import Tree

TreeFn = Callable[[int], Tree]


@dataclasses.dataclass(frozen=True)
class Hierarchical(Mechanism):
    """Hierarchical self-attention, over a uniform tree of a given branching or the tree passed to the call.

    Attributes:
        branching: children per node from the leaves up, the last number repeating, such as (64, 16): a uniform tree
            over any length, also in decoding; None for a tree passed to each call.
        include_self: whether a token attends to itself, as in softmax; False is the published form.
        sibling_bias: bias on the scores of siblings by their offset: None, "learned", "sinusoidal" or "fourier"; see
            `SiblingBias`.
        tree_fn: length -> `Tree`, in place of `branching`; used where no tree is passed to the call.
        implementation: "xla", "pallas" (TPU) or None, as in `jaxattn.hierarchical_attention`.

    Raises:
        ValueError: fewer than 2 children, an unknown sibling_bias or implementation, or both branching and tree_fn.

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
    implementation: str | None = None

    def __post_init__(self):
        check_choice("sibling_bias", self.sibling_bias, KINDS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        if self.branching is not None:
            if self.tree_fn is not None:
                raise ValueError("branching and tree_fn both say what the tree is; give one of them.")
            object.__setattr__(self, "branching", tuple(self.branching))
            Tree.uniform(1, self.branching)  # checks the sizes

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "HierarchicalModule":
        """The module; its only parameters are those of the sibling bias."""
        bias = None
        if self.sibling_bias is not None:
            bias = SiblingBias(self.sibling_bias, sizes.num_heads, param_dtype=sizes.param_dtype, rngs=rngs)
        return HierarchicalModule(self, sizes, bias)

    @property
    def needs_tree(self) -> bool:
        """Whether there is neither `branching` nor `tree_fn`."""
        return self.branching is None and self.tree_fn is None

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Scores and weighted values among the children of each node, and the nodes' mean queries, keys and values.

        With F_l nodes of b_l children on level l: Σ_l 4 N F_l b_l² H, and Σ_l 6 N F_l b_l H over all levels but the
        root's. The gradient has two products for each.
        """
        if self.needs_tree:
            return super().flops(length, num_heads, head_dim, num_kv_heads)
        total, nodes = 0, length
        for size in self.tree_over(length).branching:
            families = -(-nodes // size)
            total += 4 * families * size**2
            total += 0 if families == 1 else 6 * families * size
            nodes = families
        return Flops(total * num_heads * head_dim, 2 * total * num_heads * head_dim)

    def tree_over(self, length: int) -> Tree:
        """The tree over `length` tokens where none comes with the call."""
        if self.branching is not None:
            return Tree.uniform(length, self.branching)
        if self.tree_fn is None:
            raise ValueError(
                "tree must be given at the call: this mechanism has neither branching nor tree_fn; got None."
            )
        return self.tree_fn(length)


class HierarchicalModule(MechanismModule):
    """Holds the sibling bias and calls `hierarchical_attention`."""

    refusals: Mapping[str, str] = {
        **MechanismModule.refusals,
        "segment_ids": "cannot be used with a tree, whose nodes may span segments; put the segments below one root "
        "with Tree.join, or one in a row",
    }

    def __init__(self, config: Hierarchical, sizes: LayerSizes, bias: SiblingBias | None):
        super().__init__(sizes)
        self.config = config
        self.bias = nnx.data(bias)

    @property
    def takes(self) -> frozenset[str]:
        """A tree."""
        return frozenset({"tree", "axis_name"})

    def _biases(self, tree: Tree) -> list[Array] | None:
        return None if self.bias is None else self.bias(tree)

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the tree; `mask` must be the same for all queries."""
        devices = 1 if given.axis_name is None else lax.axis_size(given.axis_name)
        tree = self.config.tree_over(query.shape[1] * devices) if given.tree is None else given.tree
        return hierarchical_attention(
            query,
            key,
            value,
            tree,
            key_bias=given.folded_key_bias(key.shape[1]),
            sibling_bias=self._biases(tree),
            is_causal=given.is_causal,
            include_self=self.config.include_self,
            implementation=self.config.implementation,
            axis_name=given.axis_name,
        )

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The open families of a tree over `max_length` tokens: O(b log max_length) nodes, in float32."""
        sizes, tree = self.sizes, self.config.tree_over(max_length)
        if not tree.is_uniform and not tree.is_batched:
            rows = Tree.stack([tree] * batch)  # as in all arrays of a state
            tree = jax.tree.map(jnp.asarray, rows)
        return {
            "nodes": hierarchical_attention_init_state(
                batch, sizes.kv_heads, sizes.head_dim, tree, num_heads=sizes.num_heads if gated else None
            ),
            "tree": tree,
        }

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to the open families and to each other."""
        tree = state["tree"]
        nodes, out = hierarchical_attention_step(
            state["nodes"],
            query,
            key,
            value,
            tree,
            key_bias=given.key_bias,
            sibling_bias=self._biases(tree),
            include_self=self.config.include_self,
            query_seq_lengths=given.num_new_tokens(),
        )
        return {"nodes": nodes, "tree": tree}, out


def _parse(sizes: str = "given", *options: str) -> Hierarchical:
    include_self, sibling_bias = True, None
    for option in options:
        word, _, kind = option.partition("=")
        if option == "noself":
            include_self = False
        elif word == "bias" and kind:
            sibling_bias = kind
        else:
            raise ValueError(
                f"options of tree are noself and bias=learned|sinusoidal|fourier; got {option!r}"
            )
    branching = None
    if sizes != "given":
        branching = tuple(whole_number("branching", size) for size in sizes.split("x"))
    return Hierarchical(branching, include_self=include_self, sibling_bias=sibling_bias)


def _spell(mechanism: Hierarchical) -> tuple[str, ...]:
    sizes = "given" if mechanism.branching is None else "x".join(map(str, mechanism.branching))
    options = [] if mechanism.include_self else ["noself"]
    options += [] if mechanism.sibling_bias is None else [f"bias={mechanism.sibling_bias}"]
    return (sizes, *options)


register_mechanism(
    MechanismRow(
        name="tree",
        syntax="tree[:SIZExSIZE...|given[:noself][:bias=learned|sinusoidal|fourier]]",
        help="a tree: uniform, with families of SIZE from the leaves up, or each text's own; near-linear in length",
        mechanism=Hierarchical,
        parse=_parse,
        spell=_spell,
        implementations=("hierarchical", "pallas"),
    )
)
