"""Replacement of the attention in an existing model, without training."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from flax import nnx

from jaxattn.core.flax_mechanism import AttentionFn
from jaxattn.core.mechanism import Mechanism
from jaxattn.nn.attention import Attention
from jaxattn.nn.stack import unroll_layers
from jaxattn.softmax.mechanism import SoftmaxModule
from jaxattn.tree import Tree
from jaxattn.tree.mechanism import Hierarchical

Model = TypeVar("Model", bound=nnx.Module)


def replace_attention(
    model: Model, mechanism: Mechanism, *, layers: Iterable[int] | None = None, rngs: nnx.Rngs | None = None
) -> Model:
    """A copy of the model that attends by `mechanism` in the chosen layers, with all weights unchanged.

    Layers are the `jaxattn.nn.Attention` and the `flax.nnx.MultiHeadAttention` modules in the order of the model's
    tree, which for stacks of blocks is the order of the blocks.

    Args:
        model: any Flax NNX module; it is not changed.
        mechanism: the replacement of softmax.
        layers: numbers of layers, negative ones from the end; None for all.
        rngs: for mechanisms with parameters or random numbers of their own; None for a fixed seed.

    Returns:
        The changed copy, its blocks unrolled; with one mechanism in all of them, `scan_layers` scans them again.

    Raises:
        ValueError: there is no such layer, or a chosen one does not attend by softmax.

    Examples:
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder, RandomFeatures, replace_attention
        >>> encoder = Encoder(3, 8, 2, rngs=nnx.Rngs(0))
        >>> changed = replace_attention(encoder, RandomFeatures(num_features=16), layers=[-1])
        >>> [type(block.attention.mechanism).__name__ for block in changed.blocks]
        ['SoftmaxModule', 'SoftmaxModule', 'RandomFeaturesModule']
    """
    changed = unroll_layers(model)
    found = _attention_layers(changed)
    count = len(found)
    chosen = range(count) if layers is None else list(layers)
    outside = [layer for layer in chosen if not -count <= layer < count]
    if outside or not count:
        raise ValueError(
            f"layers must be numbers of the model's {count} attention layers; got {outside or layers}."
        )
    rngs = nnx.Rngs(0) if rngs is None else rngs
    for layer in chosen:
        module = found[layer]
        if isinstance(module, Attention):
            if not isinstance(module.mechanism, SoftmaxModule):
                raise ValueError(
                    f"layers must attend by softmax; layer {layer} has {type(module.mechanism).__name__}."
                )
            module.mechanism = mechanism.build(module.mechanism.sizes, rngs=rngs)
        else:
            if isinstance(module.attention_fn, AttentionFn):
                raise ValueError(
                    f"layers must attend by softmax; layer {layer} has another attention_fn already."
                )
            # A module with parameters in place of a function.
            new = mechanism.attention_fn(module.num_heads, module.head_dim, rngs=rngs)
            module.attention_fn = nnx.data(new)
    return changed


def inject(
    model: Model,
    tree_fn: Callable[[int], Tree] | None,
    *,
    layers: Iterable[int] | None = None,
    include_self: bool = True,
) -> Model:
    """A copy of the model with hierarchical attention in place of softmax in the chosen layers: zero-shot use.

    No weight changes. With self included, the new attention is the one closest to softmax (in KL divergence) among
    those that are constant on the tree's blocks.

    Args:
        model: any Flax NNX module with `jaxattn.nn.Attention` or `flax.nnx.MultiHeadAttention` inside.
        tree_fn: length -> `Tree` over that many tokens, such as `lambda length: Tree.uniform(length, 16)`; None where
            the model will be called with `tree=`.
        layers: numbers of layers, negative ones from the end; None for all.
        include_self: False for the published form, in which a token does not attend to itself.

    Returns:
        The changed copy.

    Raises:
        ValueError: there is no such layer, or a chosen one does not attend by softmax.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn import Tree
        >>> from jaxattn.nn import Encoder, inject
        >>> encoder = Encoder(3, 8, 2, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (1, 6, 8))
        >>> flat = inject(encoder, lambda length: Tree.uniform(length, length))
        >>> bool(jnp.allclose(flat(x), encoder(x), atol=1e-5))  # one family of all tokens is softmax
        True
        >>> deep = inject(encoder, lambda length: Tree.uniform(length, (3, 2)), layers=[1, 2])
        >>> bool(jnp.allclose(deep(x), encoder(x), atol=1e-5))
        False

    Reference: arXiv 2509.15448, section 4.
    """
    return replace_attention(model, Hierarchical(include_self=include_self, tree_fn=tree_fn), layers=layers)


def _attention_layers(model: nnx.Module) -> list[Attention | nnx.MultiHeadAttention]:
    found = [
        (tuple((isinstance(key, str), key) for key in path), module)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, (Attention, nnx.MultiHeadAttention))
    ]
    return [module for _, module in sorted(found, key=lambda pair: pair[0])]
