"""The peers written in PyTorch, ready to run."""

from collections.abc import Callable
from typing import Any

from benchmarks.suites import feature_cases, tree_cases
from benchmarks.suites.cases import Case, inputs


def prepare_torch(case: Case) -> tuple[Callable[[], Any], Callable[[Any, int], None]]:
    """(setup, run) of a `Prepared`.

    Raises:
        NotImplementedError: the package is not installed, or does not do this case.
    """
    try:
        import torch
    except ImportError as error:
        raise NotImplementedError("torch is not installed.") from error
    import numpy as np

    device = "cuda" if torch.cuda.is_available() else "cpu"

    # The peers for trees want (B, T, N H), as a projection gives it; the others (B, N, T, H).
    over_tree = case.implementation == tree_cases.PEER

    def tensor(array: Any) -> Any:
        plain = torch.from_numpy(np.asarray(array).astype(np.float32))
        plain = plain.flatten(2) if over_tree else plain.transpose(1, 2).contiguous()
        return plain.to(device, getattr(torch, case.dtype)).requires_grad_()

    if over_tree:
        attention = h_transformer(case, device)
    else:
        attention = performer(case, device) if case.implementation == feature_cases.PEER else softmax(case)
    arguments = [tensor(x) for x in inputs(case)[:3]]
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

    return lambda: attention(*arguments) if case.direction == "backward" else None, run


def softmax(case: Case) -> Callable[..., Any]:
    """Softmax attention of (B, N, T, H) tensors."""
    import torch

    return lambda query, key, value: torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads
    )


def performer(case: Case, device: str) -> Callable[..., Any]:
    """FAVOR+ attention of (B, N, T, H) tensors, with its random matrix held constant."""
    try:
        from performer_pytorch import FastAttention
    except ImportError as error:
        raise NotImplementedError("performer-pytorch is not installed.") from error
    if case.causal:
        raise NotImplementedError(
            "performer-pytorch's causal form is CUDA code of another package; what it falls back to without that "
            "stores a state for every token, and is no peer."
        )
    if case.heads != case.kv_heads:
        raise NotImplementedError("performer-pytorch has no grouped queries.")
    num_features = feature_cases.parse(case.mechanism).num_features
    return FastAttention(dim_heads=case.head_dim, nb_features=num_features, causal=False).to(device)


def h_transformer(case: Case, device: str) -> Callable[..., Any]:
    """Hierarchical attention of (B, T, N H) tensors by the layer of h-transformer-1d, without its projections."""
    try:
        from h_transformer_1d import h_transformer_1d as package
    except ImportError as error:
        raise NotImplementedError("h-transformer-1d is not installed.") from error
    import torch

    if case.heads != case.kv_heads:
        raise NotImplementedError("h-transformer-1d has no grouped queries.")
    block = tree_cases.branching(case.mechanism)[0]
    if case.length < 8 * block:
        raise NotImplementedError(f"h-transformer-1d needs 8 blocks of {block} tokens or more.")
    options = {"dim": 1, "heads": case.heads, "dim_head": case.head_dim, "block_size": block}
    layer = (
        package.CausalHAttention1D(max_seq_len=case.length, **options)
        if case.causal
        else package.HAttention1D(**options)
    )

    class Given(torch.nn.Module):
        """In place of the projection: what it would be cut into is there already."""

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
