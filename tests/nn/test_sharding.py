"""How parameters and their gradients are cut among devices."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxattn.nn.sharding import partition_spec, scattered_spec


@pytest.mark.parametrize(
    "names, shape, expected",
    [
        (("embed", "mlp"), (16, 64), P("fsdp", "tensor")),
        (("mlp", "embed"), (64, 16), P(("tensor", "fsdp"), None)),
        (("heads", "head_dim", "embed"), (8, 4, 16), P(("tensor", "fsdp"), None, None)),
        (("heads", "head_dim", "embed"), (6, 4, 16), P("tensor", "fsdp", None)),
        (("heads", "head_dim", "embed"), (3, 3, 16), P(None, None, "fsdp")),
        (("embed",), (16,), P("fsdp")),
    ],
)
def test_gradients_are_scattered_along_a_major_dimension(names, shape, expected):
    """From there, parts go to where the parameter is stored; compilers do not scatter along minor dimensions."""
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    stored, used = (partition_spec(names, shape, mesh, gathered=gathered) for gathered in (False, True))
    assert "fsdp" in stored
    assert scattered_spec(shape, mesh, stored, used) == expected
