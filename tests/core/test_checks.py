"""Flags that are neither True nor False."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jaxattn
from jaxattn import Tree

X = jnp.ones((1, 4, 2, 8))
ATTEND = partial(jaxattn.dot_product_attention, X, X, X)
TREE = Tree.uniform(4, 2)


@pytest.mark.parametrize("value", ["no", 1, None])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("is_causal", ATTEND),
        ("return_residual", ATTEND),
        ("normalize", partial(jaxattn.linear_attention, X, X, X, is_causal=True)),
        ("include_self", partial(jaxattn.hierarchical_attention, X, X, X, TREE)),
    ],
)
def test_what_is_no_flag_does_not_count_as_true(no_typecheck, name, call, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False, known at trace time; got {value!r}"):
        call(**{name: value})


def test_a_traced_flag_is_named(no_typecheck):
    with pytest.raises(ValueError, match="is_causal must be True or False, known at trace time"):
        jax.jit(lambda flag: ATTEND(is_causal=flag))(True)
