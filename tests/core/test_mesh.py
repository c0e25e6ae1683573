"""What is known of the devices of a program while it is traced."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxattn.core import mesh


def alone(x, wrap=lambda function: function):
    found = []

    def ask(x):
        found.append(mesh.is_alone(x))
        return x

    jax.jit(wrap(ask)).trace(x)
    return found[0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_one_tpu_is_alone_whatever_this_process_has(kind):
    for size in (1, 2):
        sharding = NamedSharding(AbstractMesh((size,), ("d",), (kind,)), P("d"))
        assert alone(jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=sharding)) is (size == 1)
    here = NamedSharding(jax.make_mesh((1,), ("d",), (kind,)), P("d"))
    assert not alone(jax.device_put(jnp.ones((4, 8)), here)), "a mesh of a CPU"


@pytest.mark.parametrize("tpus", [0, 1, 4])
def test_without_a_mesh_the_tpus_of_the_process_count(tpus, monkeypatch):
    def device_count(backend):
        assert backend == "tpu", "not the default backend"
        if not tpus:
            raise RuntimeError("Unknown backend tpu")
        return tpus

    monkeypatch.setattr(mesh.jax, "device_count", device_count)
    assert alone(jnp.ones((4, 8))) is (tpus == 1)


def test_inside_shard_map_kernels_are_alone_where_nothing_is_checked():
    devices = jax.make_mesh((2,), ("d",), (AxisType.Auto,))
    for checks in (False, True):
        wrap = lambda f, checks=checks: jax.shard_map(  # noqa: E731
            f, mesh=devices, in_specs=P("d"), out_specs=P("d"), check_vma=checks
        )
        assert alone(jnp.ones((4, 8)), wrap) is not checks
