"""How parameters and their gradients are cut among devices."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

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
