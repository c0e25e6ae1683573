"""A benchmark case compiled and ready to run, and how a case that cannot run is recorded."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

MATMUL_SIZE = 2048
MATMUL_FLOPS = 2 * MATMUL_SIZE**3


@dataclasses.dataclass
class Prepared:
    """`setup()` makes what a run needs, untimed; `run(what, n)` does the work n times and waits for the end."""

    setup: Callable[[], Any]
    run: Callable[[Any, int], None]
    compile_s: float | None = None
    temp_bytes: int | None = None


class TooLarge(Exception):
    """The compiler's memory plan exceeds what a case may use."""


def failure(error: Exception | str) -> dict[str, str]:
    """`status` ("out_of_memory", "unsupported" or "error") and `message` of a row whose case failed."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "MemoryError", "bad_alloc", "TooLarge")
    if any(sign in text for sign in signs):
        status = "out_of_memory"
    else:
        status = "unsupported" if isinstance(error, (ValueError, NotImplementedError)) else "error"
    return {"status": status, "message": text.removeprefix("TooLarge: ")[:300]}


def compile_case(
    function: Callable[..., jax.Array],
    arguments: Sequence[Any],
    direction: str,
    limit_bytes: int | None,
) -> Prepared:
    """Compiles one pass of `function`.

    Args:
        function: gives an array of the shape and dtype of its first argument.
        arguments: arrays and pytrees that it is called with; all of them get gradients.
        direction: "forward", "backward" or "both".
        limit_bytes: refuses a case whose compiled plan (arguments, results and temporaries) needs more; None takes
            what the device has, on a CPU four fifths of the free memory.

    Raises:
        TooLarge: the plan exceeds `limit_bytes`.
    """
    limit = limit_bytes or _available_bytes(jax.devices()[0])
    example = arguments[0]
    cotangent = jax.random.normal(jax.random.key(9), example.shape, jnp.float32).astype(example.dtype)
    prepared = Prepared(lambda: None, lambda what, times: None)

    def compiled(f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        start = time.perf_counter()
        executable = jax.jit(f).lower(*args).compile()
        prepared.compile_s = time.perf_counter() - start
        plan: Any = executable.memory_analysis()
        prepared.temp_bytes = plan.temp_size_in_bytes
        planned = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
        if limit is not None and planned > limit:
            raise TooLarge(
                f"XLA plans {planned / 2**30:.2f} GiB for this case; the limit is {limit / 2**30:.2f} GiB."
            )
        return executable

    def both(cotangent: jax.Array, *args: jax.Array) -> Any:
        out, vjp = jax.vjp(function, *args)
        return out, vjp(cotangent)

    call: Callable[[Any], Any]
    if direction == "forward":
        main = compiled(function, *arguments)
        call = lambda _: main(*arguments)  # noqa: E731
    elif direction == "both":
        main = compiled(both, cotangent, *arguments)
        call = lambda _: main(cotangent, *arguments)  # noqa: E731
    else:
        forward = compiled(lambda *args: jax.vjp(function, *args)[1], *arguments)
        prepared.setup = lambda: jax.block_until_ready(forward(*arguments))
        main = compiled(lambda vjp, c: vjp(c), prepared.setup(), cotangent)
        call = lambda residuals: main(residuals, cotangent)  # noqa: E731

    prepared.run = repeated(call)
    return prepared


def repeated(call: Callable[[Any], Any]) -> Callable[[Any, int], None]:
    """`Prepared.run` of one call."""

    def run(what: Any, times: int) -> None:
        for _ in range(times):
            result = call(what)
        jax.block_until_ready(result)

    return run


def matmul() -> Prepared:
    """The yardstick of FLOPs: one float32 product of two square matrices, at the platform's default precision."""
    x = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    return Prepared(lambda: None, repeated(lambda _: product(x)))


def _available_bytes(device: jax.Device) -> int | None:
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 4 // 5
    except OSError:
        pass
    return None
