"""The theorem: no attention matrix that is constant on the tree's blocks is closer to softmax."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.tree import Tree, hierarchical_energy, hierarchical_weights
from tests.tree.arrays import WIDTH, tree_arrays
from tests.tree.nested import leaves

TREE = Tree.from_nested([[0, 1], [[2, 3, 4], 5], [6, [7, 8]]])


def row_divergence(weights, scores):
    """Σ_i KL(row i of weights || softmax of row i of scores), a number a head."""
    log_softmax = scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    logarithm = jnp.log(jnp.where(weights > 0, weights, 1.0))
    return jnp.where(weights > 0, weights * (logarithm - log_softmax), 0.0).sum((-2, -1))


def test_divergence_is_the_energy():
    """Σ KL(tree || softmax) = T φ + Σ log Z, with a gate on the keys as well."""
    query, key, _, key_bias = tree_arrays(1, length=9)
    weights = jax.jit(hierarchical_weights)(query, key, TREE, key_bias=key_bias)
    energy = jax.jit(hierarchical_energy)(query, key, TREE, key_bias=key_bias)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / WIDTH**0.5 + jnp.moveaxis(key_bias, 1, 2)[:, :, None]
    partition = jax.nn.logsumexp(scores, axis=-1).sum(-1)
    np.testing.assert_allclose(row_divergence(weights, scores), 9 * energy + partition, rtol=1e-5)


def blocks_of(node):
    """Every (rows, columns) that share a weight."""
    for i, child in enumerate(node):
        for j, other in enumerate(node):
            if i != j or isinstance(child, int):
                yield leaves(child), leaves(other)
        if not isinstance(child, int):
            yield from blocks_of(child)


def test_no_other_matrix_with_these_blocks_is_closer():
    """Random moves of mass that keep rows normalised and blocks constant only raise the divergence."""
    with jax.enable_x64(True):
        query, key = (jnp.asarray(x, jnp.float64) for x in tree_arrays(1, length=9)[:2])
        weights = np.asarray(jax.jit(hierarchical_weights)(query, key, TREE))[0, 0]
        scores = np.einsum("btnh,bsnh->bnts", query, key)[0, 0] / WIDTH**0.5
        divergence = jax.jit(row_divergence)
        blocks = list(blocks_of(TREE.to_nested()))
        for rows, columns in blocks:
            assert np.ptp(weights[np.ix_(rows, columns)]) < 1e-12
        # Moves of the blocks' weights that keep all nine row sums: the null space of their effect on the rows.
        effect = [[len(columns) * (row in rows) for rows, columns in blocks] for row in range(9)]
        free = np.linalg.svd(np.array(effect, float))[2][np.linalg.matrix_rank(effect) :]
        assert len(free) > 0
        best = float(divergence(weights, scores))
        rng = np.random.default_rng(0)
        for size in (1e-2, 1e-3):
            for _ in range(50):
                direction = rng.standard_normal(len(free)) @ free
                direction /= np.abs(direction).max()
                moved = weights.copy()
                for (rows, columns), amount in zip(blocks, direction, strict=True):
                    moved[np.ix_(rows, columns)] += size * weights.min() * amount
                np.testing.assert_allclose(moved.sum(-1), 1)
                assert float(divergence(moved, scores)) > best
