"""Arithmetic of attention, from its formulas."""

from jaxattn import COMPONENTS, Tree
from jaxattn.nn import Mechanism, RandomFeatures, Softmax
from jaxattn.tree.mechanism import Hierarchical


def attention_flops(mechanism: Mechanism, length: int, num_heads: int, head_dim: int) -> int:
    """Floating-point operations of the matrix products of one layer's attention on one text, forward.

    A product of (a, b) and (b, c) counts 2abc. With T tokens and N heads of width H:

    - softmax, the scores and the weighted values: 4 N T² H;
    - a tree whose level l has F_l families of b_l places, the scores and the weighted values inside the families,
      Σ_l 4 N F_l b_l² H, and the mean queries, keys and values of all families but the root's, Σ_l 6 N F_l b_l H;
    - M random features from R rows of weights (R = M for most components), W q and W k, 4 N T R H, and the sums
      Σ_j φ_k v' and φ_q·(that), 4 N T M H.

    Not counted: the projections before and after, which are the same for all, exponentials and divisions, and a
    component's own rotation. Whether a tree includes a token itself changes nothing.

    Args:
        mechanism: `Softmax`, a `Hierarchical` with a branching, or `RandomFeatures`.
        length: T, with padding if there is any.
        num_heads: N.
        head_dim: H.

    Raises:
        TypeError: another mechanism.

    Examples:
        >>> attention_flops(Softmax(), 512, 12, 32), attention_flops(Hierarchical((16,)), 512, 12, 32)
        (402653184, 14647296)
    """
    a_pair = 4 * num_heads * head_dim
    if isinstance(mechanism, Softmax):
        return a_pair * length**2
    if isinstance(mechanism, RandomFeatures):
        rows = COMPONENTS[mechanism.component].rows_for(
            mechanism.num_features, **dict(mechanism.component_options)
        )
        return a_pair * length * (rows + mechanism.num_features)
    if not isinstance(mechanism, Hierarchical) or mechanism.branching is None:
        raise TypeError(f"mechanism must be softmax, random features or a uniform tree; got {mechanism!r}.")
    total, nodes = 0, length
    for size in Tree.uniform(length, mechanism.branching).branching:
        families = -(-nodes // size)
        total += a_pair * families * size**2
        total += 0 if families == 1 else 6 * num_heads * head_dim * families * size
        nodes = families
    return total
