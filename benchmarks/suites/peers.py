"""Implementations that are not this project's, measured in the same run."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.measure.prepared import Prepared, compile_case
from benchmarks.suites.cases import Case, inner, inputs, parse
from jaxattn.nn import Hierarchical, Mechanism, RandomFeatures


class Peer(NamedTuple):
    """What a peer is measured with, given the mechanisms of a run without their gates, and how it is compiled."""

    mechanisms: Callable[[Sequence[Mechanism]], list[str]]
    prepare: Callable[[Case, int | None], Prepared]


def _softmax(mechanisms: Sequence[Mechanism]) -> list[str]:
    return ["softmax"]


def _same_features(mechanisms: Sequence[Mechanism]) -> list[str]:
    """The positive features of FAVOR+ on orthogonal rows, as many as ours."""
    return [f"features:posrf-orf:{m.num_features}" for m in mechanisms if isinstance(m, RandomFeatures)]


def _same_blocks(mechanisms: Sequence[Mechanism]) -> list[str]:
    """Blocks as large as our lowest level, pairs above them."""
    return [f"tree:{m.branching[0]}x2" for m in mechanisms if isinstance(m, Hierarchical) and m.branching]


def _jax(implementation: Any) -> Callable[[Case, int | None], Prepared]:
    def prepare(case: Case, limit_bytes: int | None) -> Prepared:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return jax.nn.dot_product_attention(
                query, key, value, is_causal=case.causal, implementation=implementation
            )

        return compile_case(attend, inputs(case), case.direction, limit_bytes)

    return prepare


def _torch(make: Callable[[Any, Case, str], Callable[..., Any]]) -> Callable[[Case, int | None], Prepared]:
    """Prepares what `make(torch, case, device)` gives, a function of (B, N, T, H) tensors."""

    def prepare(case: Case, limit_bytes: int | None) -> Prepared:
        torch = _module("torch", "torch")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # The peer for trees takes (B, T, N H), as a projection gives it; the others (B, N, T, H).
        flat = make is _h_transformer
        attention = make(torch, case, device)

        def tensor(array: jax.Array) -> Any:
            plain = torch.from_numpy(np.asarray(array).astype(np.float32))
            plain = plain.flatten(2) if flat else plain.transpose(1, 2).contiguous()
            return plain.to(device, getattr(torch, case.dtype)).requires_grad_()

        arguments = [tensor(x) for x in inputs(case)]
        cotangent = torch.randn_like(arguments[0])

        def once(out: Any) -> None:
            if case.direction == "forward":
                with torch.no_grad():
                    attention(*arguments)
                return
            if case.direction == "both":
                out = attention(*arguments)
            torch.autograd.grad(out, arguments, cotangent, retain_graph=case.direction == "backward")

        def run(out: Any, times: int) -> None:
            for _ in range(times):
                once(out)
            if device == "cuda":
                torch.cuda.synchronize()

        return Prepared(lambda: attention(*arguments) if case.direction == "backward" else None, run)

    return prepare


def _scaled_dot_product(torch: Any, case: Case, device: str) -> Callable[..., Any]:
    def attend(query: Any, key: Any, value: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads
        )

    return attend


def _performer(torch: Any, case: Case, device: str) -> Callable[..., Any]:
    """FAVOR+ attention with its random matrix held constant."""
    if case.causal:
        raise NotImplementedError(
            "performer-pytorch's causal form is CUDA code of another package; its fallback without that stores a "
            "state for every token, and is no peer."
        )
    package = _module("performer_pytorch", "performer-pytorch", case)
    num_features = getattr(parse(case.mechanism), "num_features", None)
    return package.FastAttention(dim_heads=case.head_dim, nb_features=num_features, causal=False).to(device)


def _h_transformer(torch: Any, case: Case, device: str) -> Callable[..., Any]:
    """The attention layer of h-transformer-1d without its projections, of (B, T, N H) tensors."""
    package = _module("h_transformer_1d.h_transformer_1d", "h-transformer-1d", case)
    block = getattr(inner(parse(case.mechanism)), "branching", (1,))[0]
    if case.length < 8 * block:
        raise NotImplementedError(f"h-transformer-1d needs 8 blocks of {block} tokens or more.")
    options = {"dim": 1, "heads": case.heads, "dim_head": case.head_dim, "block_size": block}
    if case.causal:
        layer = package.CausalHAttention1D(max_seq_len=case.length, **options)
    else:
        layer = package.HAttention1D(**options)

    class Given(torch.nn.Module):
        """In place of the projection: the parts it would be split into."""

        def forward(self, _: Any) -> Any:
            return self

        def chunk(self, *_: Any, **__: Any) -> Any:
            return self.parts

    layer.to_qkv, layer.to_out = Given(), torch.nn.Identity()
    layer.to(device)

    def attend(query: Any, key: Any, value: Any) -> Any:
        layer.to_qkv.parts = query, key, value
        return layer(query)

    return attend


def _module(name: str, package: str, case: Case | None = None) -> Any:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise NotImplementedError(f"{package} is not installed.") from error
    if case is not None and case.heads != case.kv_heads:
        raise NotImplementedError(f"{package} has no grouped queries.")
    return module


PEERS = {
    "jax": Peer(_softmax, _jax("xla")),
    "jax-cudnn": Peer(_softmax, _jax("cudnn")),
    "torch": Peer(_softmax, _torch(_scaled_dot_product)),
    "performer": Peer(_same_features, _torch(_performer)),
    "h-transformer": Peer(_same_blocks, _torch(_h_transformer)),
}
