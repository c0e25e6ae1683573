"""Mechanisms over tokens that the rules of a mesh cut among devices: `jax.shard_map` over that axis alone."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxattn.core.inputs import AttentionInputs
from jaxattn.core.mechanism import MechanismModule
from jaxattn.core.pallas.parts import cut_over
from jaxattn.nn.sharding import axes_of_rules, sequence_axis


def attend(
    mechanism: MechanismModule, query: Array, key: Array, value: Array, given: AttentionInputs
) -> Array:
    """What the mechanism does, on every device for its own tokens where they are cut among devices.

    (In attention to a context the compiler moves tokens between devices as it likes.)

    Raises:
        ValueError: the mechanism cannot do this, tokens do not divide, or a mask differs between queries.
    """
    found = None if given.query_inputs is not None else sequence_axis(query)
    if found is None:
        with cut_over(*axes_of_rules(query, "batch", "kv_heads")):
            return mechanism(query, key, value, given)
    mesh, axis = found
    length, devices = query.shape[1], mesh.shape[axis]
    if length % devices:
        raise ValueError(
            f"x must have a multiple of {devices} tokens, which the axis {axis!r} of the mesh cuts; got {length}."
        )
    if given.mask is not None and given.mask.shape[-2] != 1:
        raise ValueError(
            "mask must be the same for all queries, (B, N, 1, S), where tokens are cut among devices; got shape "
            f"{given.mask.shape}."
        )
    names = ("inputs", "token_mask", "segment_ids", "mask")
    arrays: dict[str, Any] = {name: x for name in names if (x := getattr(given, name)) is not None}
    arrays |= {"query": query, "key": key, "value": value}
    tokens = PartitionSpec(None, axis)
    specs = dict.fromkeys(arrays, tokens)
    if given.mask is not None:
        specs["mask"] = PartitionSpec(None, None, None, axis if given.mask.shape[-1] == length else None)
    graph, state = nnx.split(mechanism)

    def local(state: Any, arrays: dict[str, Array]) -> tuple[Array, Any]:
        module = nnx.merge(graph, state)
        query, key, value = (arrays.pop(name) for name in ("query", "key", "value"))
        parts: dict[str, Any] = {**arrays, "axis_name": axis}
        out = module(query, key, value, dataclasses.replace(given, **parts))
        return out, nnx.state(module, nnx.Not(nnx.Param))

    whole = PartitionSpec()
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, specs), out_specs=(tokens, whole), axis_names={axis}
    )
    out, held = run(state, arrays)
    nnx.update(mechanism, held)
    return out
