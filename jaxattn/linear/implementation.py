"""The one choice between plain XLA and fused kernels, and what the kernels cannot do."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.checks import is_known
from jaxattn.core.pallas.choice import LANES, takes_pallas
from jaxattn.core.pallas.parts import Parts, own_part
from jaxattn.linear.plan import FeatureFunctions, Tiling, choose_tiling

# "mosaic_gpu" is only taken by name.
IMPLEMENTATIONS = (None, "xla", "pallas", "mosaic_gpu")
_CHUNK = 256
# What fits into VMEM beside the state, by compiling.
_WIDEST = {"query and key": 256, "value": 256, "features": 512}
_MOST_GROUPS = {2: 16, 4: 8}  # by the bytes of a number
# Tokens a chunk on NVIDIA GPUs, and the widths that fit into their shared memory.
_GPU_CHUNK = 64
_GPU_WIDEST = 256


class Fused(NamedTuple):
    """The choice of fused kernels: tokens a chunk, which they are, and how a call is cut among devices."""

    chunk: int
    name: str = "pallas"
    parts: Parts | None = None


def refusals(
    call: Call, features: FeatureFunctions, num_features: int, chunk_size: int | None
) -> dict[str, str | None]:
    """Why the fused kernels of every name cannot take a call; see `pallas_cannot`."""
    return {
        "pallas": pallas_cannot(call, features, num_features, chunk_size),
        "mosaic_gpu": mosaic_gpu_cannot(call, num_features, chunk_size),
    }


def pallas_cannot(
    call: Call, features: FeatureFunctions, num_features: int, chunk_size: int | None
) -> str | None:
    """Why the fused kernels cannot take a call in the form of `Call.with_own_sums`, or None if they can."""
    sizes = (*call.query.shape, call.key.shape[1])
    if not is_known(*sizes):
        return f"needs sizes that are known at trace time; got {sizes}."
    if features.fused is None:
        return (
            "makes features of one product with a dense matrix only: those of posrf, gerf, oprf, sderf, aderf, "
            "saderf and trigrf on weights without signs (all but sgq and ssr); use implementation='xla'."
        )
    if accumulation_dtype(call.query, call.key, call.value) == jnp.float64:
        return "takes no float64; use implementation='xla'."
    widths = call.query.shape[-1], call.value.shape[-1], num_features
    for (name, most), width in zip(_WIDEST.items(), widths, strict=True):
        if width > most:
            return f"takes {name} up to a width of {most}; got {width}. Use implementation='xla'."
    dtype = jnp.result_type(call.query, call.key, call.value)
    groups = call.query.shape[3]
    if groups > (most := _MOST_GROUPS[dtype.itemsize]):
        return (
            f"takes up to {most} query heads a key head in {dtype}; got {groups}. Use implementation='xla'."
        )
    if chunk_size is not None and chunk_size % LANES:
        return f"takes a chunk_size that is a multiple of {LANES}; got {chunk_size}."
    return None


def mosaic_gpu_cannot(call: Call, num_features: int, chunk_size: int | None) -> str | None:
    """Why the fused kernel for NVIDIA GPUs cannot take a call; see `pallas_cannot`."""
    sizes = (*call.query.shape, call.key.shape[1])
    if not is_known(*sizes):
        return f"needs sizes that are known at trace time; got {sizes}."
    if not call.is_causal:
        return "takes causal attention only: without causality two products do it in XLA."
    if call.query.dtype != jnp.bfloat16:
        return "takes queries, keys and values in bfloat16 only; use implementation='xla'."
    for name, width in (("features", num_features), ("value", call.value.shape[-1])):
        if width > _GPU_WIDEST:
            return f"takes {name} up to a width of {_GPU_WIDEST}; got {width}. Use implementation='xla'."
    if chunk_size not in (None, _GPU_CHUNK):
        return f"has chunks of {_GPU_CHUNK} tokens; got a chunk_size of {chunk_size}."
    return None


def choose_implementation(
    call: Call, reason: str | None, implementation: str | None, chunk_size: int | None, platform: str
) -> Tiling | Fused:
    """How a platform does a call that `pallas_cannot` gives this reason about."""
    if implementation == "mosaic_gpu":
        return Fused(_GPU_CHUNK, implementation, own_part(call))
    if takes_pallas(call, reason, implementation, platform):
        return Fused(chunk_size or _CHUNK, parts=own_part(call))
    return choose_tiling(chunk_size, call, platform)
