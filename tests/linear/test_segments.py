"""Ids of segments that come in any order: when tokens must be moved, and that kernels move them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from jaxattn.linear import linear_attention
from jaxattn.linear.segments import order_of_segments, with_order
from jaxattn.testing import assert_matches_reference


def moves(ids):
    """Whether rows (B, T) are taken in another order."""
    tokens = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    _, seen = with_order(order_of_segments(ids), lambda x: (x, x), tokens)
    return (seen != tokens).any()


def test_what_is_contiguous_is_not_moved():
    rows = np.array(list(itertools.product(range(3), repeat=5)))
    moved = jax.vmap(moves)(jnp.asarray(rows)[:, None])
    for ids, found in zip(rows.tolist(), moved.tolist(), strict=True):
        contiguous = [x for x, _ in itertools.groupby(ids)]
        if len(contiguous) > len(set(contiguous)):
            assert found, ids
        # Sorted, also where the smallest come last, as padding does.
        elif ids == sorted(ids) or ids == sorted(ids, key=lambda x: x or 3):
            assert not found, ids
    assert moves(jnp.array([[0, 0, 1], [0, 1, 0]])), "one row decides for all"


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_kernels_put_tokens_back(causal, monkeypatch):
    """Rows of an order of their own, which share a key bias."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    rng = np.random.default_rng(0)
    phi_q, phi_k, value = (jnp.asarray(rng.random((2, 21, 2, 4)), jnp.float32) for _ in range(3))
    key_bias = jnp.asarray(rng.standard_normal((1, 21, 1)), jnp.float32).at[0, 3].set(-jnp.inf)
    ids = jnp.asarray(rng.integers(0, 3, (2, 21)))

    @functools.partial(jax.jit, static_argnums=0)
    def attend(implementation, *args):
        *args, key_bias = args
        options = {"is_causal": causal, "segment_ids": ids, "implementation": implementation}
        return linear_attention(*args, key_bias=key_bias, **options)

    args = phi_q, phi_k, value, key_bias
    assert_matches_reference(
        functools.partial(attend, "pallas"),
        functools.partial(attend, "xla"),
        args,
        rtol=1e-4,
        atol=1e-5,
    )
