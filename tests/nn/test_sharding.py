"""How parameters, their gradients and heads are cut among devices."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxattn.nn import SHARDING_RULES, Attention, Hierarchical, RandomFeatures, Softmax
from jaxattn.nn.sharding import parameter_spec


@pytest.mark.parametrize(
    "names, shape, expected",
    [
        (("embed", "mlp"), (16, 64), P("fsdp", "tensor")),
        (("mlp", "embed"), (64, 16), P(("tensor", "fsdp"), None)),
        (("heads", "head_dim", "embed"), (8, 4, 16), P(("tensor", "fsdp"), None, None)),
        (("heads", "head_dim", "embed"), (6, 4, 16), P("tensor", "fsdp", None)),
        (("heads", "head_dim", "embed"), (3, 3, 16), P(None, None, "fsdp")),
        (("embed",), (16,), P("fsdp")),
        (("layers", "mlp", "embed"), (8, 64, 16), P(None, ("tensor", "fsdp"), None)),
        (("mlp",), (64,), P("tensor")),
    ],
)
def test_parameters_are_cut_along_a_major_dimension(names, shape, expected):
    """Compilers do not scatter gradients along minor ones."""
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    assert parameter_spec(names, shape, mesh) == expected


@pytest.mark.parametrize("mechanism", [RandomFeatures(num_features=16), Softmax(), Hierarchical((128,))])
@pytest.mark.few(2)
def test_fused_kernels_where_rows_and_heads_are_cut(mechanism):
    """Each on its own part: inside of `jax.shard_map`. Not where devices would share a key head."""
    mesh = AbstractMesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2)

    def traced(num_kv_heads):
        layer = Attention(2, 8, mechanism=mechanism, num_kv_heads=num_kv_heads, rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)
        x = jax.ShapeDtypeStruct((2, 256, 8), jnp.float32)
        with jax.sharding.use_abstract_mesh(mesh), nnx.logical_axis_rules(SHARDING_RULES):
            program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x, is_causal=True))(state, x)
        return "shard_map" in str(program), "pallas_call" in str(program)

    assert traced(2) == (True, True)
    assert traced(1) == (False, False)
