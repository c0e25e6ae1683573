"""Fused kernels interpreted on a CPU, which finds races and reads of what was never written: values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where found races are
from jax.experimental.pallas import tpu as pltpu

from jaxattn.core.call import check_call
from jaxattn.testing import assert_close_to_reference, assert_matches_reference
from jaxattn.tree import Tree, hierarchical_attention
from jaxattn.tree.arguments import check_whole
from jaxattn.tree.attention import attend_chosen
from jaxattn.tree.pallas.limits import pallas_cannot
from jaxattn.tree.pallas.tiling import Fused, Tiling, cut_tiles
from tests.common.transformations import assert_transforms
from tests.tree.arrays import normal, sibling_biases
from tests.tree.dense import uniform_tree_attention
from tests.tree.nested import random_nested

INTERPRETED = pltpu.InterpretParams(detect_races=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; `tile` is the most tokens a tile."""

    branching: tuple[int, ...] = (16, 4, 4)
    length: int = 300
    tile: int = 128
    causal: bool = True
    include_self: bool = True
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    width: int = 8
    value_width: int = 8
    size: float = 1.0
    bias: float | None = 1.0
    bias_heads: int = 1

    @property
    def tree(self):
        return Tree.uniform(self.length, self.branching)

    def arrays(self, dtype=jnp.float32):
        """query, key, value and a key bias; removed are single keys, a family and half a subtree."""
        keys = self.batch, self.length, self.kv_heads
        query = self.size * normal(0, self.batch, self.length, self.heads, self.width)
        key, value = self.size * normal(1, *keys, self.width), normal(2, *keys, self.value_width)
        bias = (self.bias or 0) * normal(3, self.batch, self.length, self.bias_heads)
        if self.length > 1:
            bias = bias.at[:, 3].set(-jnp.inf).at[:, 16:32].set(-jnp.inf).at[:, 64:100].set(-jnp.inf)
        return *(x.astype(dtype) for x in (query, key, value)), bias

    def call(self, query, key, value, key_bias):
        key_bias = None if self.bias is None else key_bias
        call = check_call(query, key, value, key_bias=key_bias, is_causal=self.causal)
        return check_whole(call, self.tree, None)

    def fused(self, *arrays):
        call, biases = self.call(*arrays)
        how = Fused(cut_tiles(self.tree.branching, self.tile), self.include_self)
        return call.merge_heads(jnp.moveaxis(attend_chosen(how, self.tree, call, biases), 2, 1))

    def reference(self, query, key, value, key_bias):
        groups = self.heads // self.kv_heads
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
        key_bias = jnp.zeros_like(key_bias) if self.bias is None else key_bias
        key_bias = jnp.broadcast_to(key_bias, query.shape[:3])
        one = functools.partial(
            uniform_tree_attention,
            branching=self.tree.branching,
            scale=self.width**-0.5,
            is_causal=self.causal,
            include_self=self.include_self,
        )
        return jax.vmap(jax.vmap(one, 1, 1))(query, key, value, key_bias)


def check(case, dtype=jnp.float32, **tolerances):
    """Values and gradients against float64, without a race."""
    compare = assert_close_to_reference if "max_error" in tolerances else assert_matches_reference
    options = {"check_gradients": True} | tolerances
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        compare(jax.jit(case.fused), jax.jit(case.reference), case.arrays(dtype), **options)
    assert not interpreter.races.races_found


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.few(1)
def test_one_tile(causal):
    """Two levels, removed keys, padding."""
    check(Case((16, 8), 120, causal=causal), rtol=1e-4, atol=1e-5)


CASES = {
    "crown of two levels": Case(),
    "crown of three levels": Case((16, 8, 2, 3, 2), 1400),
    "two subtrees a tile, grouped": Case((16, 4, 4), 300, include_self=False, heads=4, kv_heads=2, batch=2),
    "a bias for each head": Case(heads=2, kv_heads=1, bias_heads=2),
    "families of the tile's size": Case((128, 3), 300),
    "larger families": Case((256, 2), 600, tile=256),
    "small families": Case((8, 2, 8, 3), 300),
    "whole tiles": Case((16, 8, 2), 256, bias=None),
    "one token": Case((16, 8), 1, bias=None),
    "no power of two above": Case((64, 6, 5), 700),
    "large logits": Case(size=8.0),
    "large biases": Case(bias=300.0),
    "wide": Case((32, 4, 4), 300, width=128, value_width=80, bias=None),
    "narrow": Case((32, 4, 4), 300, width=80, value_width=128),
}


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, causal):
    rtol = 1e-3 if "large" in name else 1e-4
    check(dataclasses.replace(CASES[name], causal=causal), rtol=rtol, atol=rtol / 10)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_bfloat16(causal):
    check(Case(causal=causal, width=64, value_width=64), jnp.bfloat16, max_error=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_nan_in_removed_keys_reaches_nothing(causal):
    case = Case(causal=causal)
    query, key, value, bias = case.arrays()

    @jax.jit
    def gradients(key, value):
        return jax.grad(lambda *arrays: (case.fused(*arrays) ** 2).sum(), (0, 1, 2, 3))(
            query, key, value, bias
        )

    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        clean = gradients(key, value)
        poisoned = gradients(key.at[:, 16:32].set(jnp.nan), value.at[:, 70].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, poisoned)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_transformations(causal, monkeypatch):
    x, tree = normal(0, 2, 1, 300, 2, 8), Tree.uniform(300, (16, 8, 3))

    def attend(x, implementation):
        return hierarchical_attention(x, x, x, tree, is_causal=causal, implementation=implementation)

    assert_transforms(attend, x, monkeypatch)


@pytest.mark.parametrize(
    ("branching", "tiling"),
    [
        ((64, 16, 16), Tiling((64, 16), 1, (16,))),
        ((64, 16), Tiling((64, 16), 1, ())),
        ((16,), Tiling((16,), 8, ())),
        ((64, 4, 24, 2), Tiling((64, 4), 4, (24, 2))),
        ((64, 64), Tiling((64,), 16, (64,))),
        ((16, 6, 4), Tiling((16,), 2, (6, 4))),
    ],
)
def test_tiling(branching, tiling):
    assert cut_tiles(branching) == tiling


def reason(tree, *, dtype=jnp.float32, width=8, groups=1, causal=True, sibling=False):
    """Why the kernels cannot take a call."""
    query = jnp.zeros((1, tree.length, groups, width), dtype)
    call = check_call(query, query[:, :, :1], query[:, :, :1], is_causal=causal)
    biases = sibling_biases(tree, heads=1) if sibling else [None] * tree.height
    return pallas_cannot(tree, call, biases)


SIXTEENS = Tree.uniform(1000, (64, 16))


def test_limits():
    with jax.enable_x64(True):
        double = reason(SIXTEENS, dtype=jnp.float64)
    ragged = Tree.from_nested(random_nested(np.random.default_rng(0), 200))
    for found, message in (
        (reason(SIXTEENS), None),
        (reason(SIXTEENS, dtype=jnp.bfloat16, causal=False), None),
        (double, "takes no float64"),
        (reason(ragged), "takes trees of Tree.uniform only"),
        (reason(SIXTEENS, sibling=True), "takes no sibling_bias"),
        (reason(SIXTEENS, width=264), "takes query and key up to a width of 256; got 264"),
        (reason(SIXTEENS, groups=5), "takes up to 4 query heads a key head of this width, dtype"),
        (reason(SIXTEENS, dtype=jnp.bfloat16, width=64, groups=8), None),
        (reason(Tree.uniform(1000, 10)), "have a power of two of tokens, 8 to 512; got 10"),
        (reason(Tree.uniform(1000, 4)), "have a power of two of tokens, 8 to 512; got 4"),
        (
            reason(Tree.uniform(1000, (64, 3))),
            "got the branching (64, 3, 3, 2), of which 64 tokens are such",
        ),
        (reason(Tree.uniform(10**5, (16, 1024))), "takes up to 512 siblings at all levels above 1024 tokens"),
        (reason(Tree.uniform(10**5, (16, 1024)), causal=False), None),
    ):
        assert found is None if message is None else message in found


def test_refused_by_name():
    x = jnp.ones((1, 130, 1, 8))
    for tree, name, message in (
        (
            Tree.uniform(130, 10),
            "pallas",
            "implementation='pallas' takes trees whose leaf families have a power",
        ),
        (Tree.uniform(130, 16), "cuda", "implementation must be one of None, 'xla', 'pallas'; got 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            hierarchical_attention(x, x, x, tree, implementation=name)


@pytest.mark.slow
def test_float32_is_traced_under_x64():
    """With levels above those of a tile, where numbers without a dtype are float64."""
    with jax.enable_x64(True):
        x, tree = jnp.ones((1, 5000, 1, 8), jnp.float32), Tree.uniform(5000, 16)

        def total(x):
            return hierarchical_attention(x, x, x, tree, implementation="pallas").sum()

        assert jax.eval_shape(jax.grad(total), x).dtype == jnp.float32
