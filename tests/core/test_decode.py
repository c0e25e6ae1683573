"""Decoding states: rows that give way to others, and counts of tokens out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn


def state_after(batch, length):
    x = jnp.ones((batch, length, 2, 4))
    state = jaxattn.dot_product_attention_init_state(batch, 8, 2, 4)
    return jaxattn.dot_product_attention_step(state, x, x, x)[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (1, r"rows must have shape \(R,\)"),
        ([1.0], "rows must be integer"),
        ([True, False, False], "rows must be integer"),
        ([3], r"rows must lie below the state's B = 3 sequences; got \[3\]"),
        ([0, 1], "new must hold a state of R = 2 sequences"),
    ],
)
def test_rows_that_are_no_indices(no_typecheck, rows, message):
    with pytest.raises(ValueError, match=message):
        jaxattn.replace_rows(state_after(3, 5), rows, state_after(1, 2))


def test_rows_may_be_a_list(no_typecheck):
    assert jaxattn.replace_rows(state_after(3, 5), [1], state_after(1, 2)).length.tolist() == [5, 2, 5]


def test_a_sequence_has_at_most_the_tokens_of_the_step():
    """The count and what the state holds say the same, whatever the lengths."""
    x = jnp.ones((3, 5, 2, 4))
    lengths = jnp.array([9, -1, 2])
    tree = jaxattn.Tree.uniform(8, 2)

    @jax.jit
    def states(lengths):
        softmax = jaxattn.dot_product_attention_init_state(3, 8, 2, 4)
        on_tree = jaxattn.hierarchical_attention_init_state(3, 2, 4, tree)
        return (
            jaxattn.dot_product_attention_step(softmax, x, x, x, query_seq_lengths=lengths)[0],
            jaxattn.hierarchical_attention_step(on_tree, x, x, x, tree, query_seq_lengths=lengths)[0],
        )

    for state in states(lengths):
        np.testing.assert_array_equal(state.length, [5, 0, 2])
