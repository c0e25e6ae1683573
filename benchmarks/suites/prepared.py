"""A case, compiled and ready to run."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.suites import feature_cases, tree_cases
from benchmarks.suites.cases import Case, attention, inputs
from benchmarks.suites.prepared_torch import prepare_torch

IN_TORCH = ("torch", feature_cases.PEER, tree_cases.PEER)


@dataclasses.dataclass
class Prepared:
    """`setup()` makes what a run needs, untimed; `run(what, n)` does the work n times and waits for the end."""

    setup: Callable[[], Any]
    run: Callable[[Any, int], None]
    compile_s: float | None = None
    temp_bytes: int | None = None
    planned_bytes: int | None = None


class TooLarge(Exception):
    """The compiler's own plan exceeds the memory that a case may use."""


def prepare(case: Case, limit_bytes: int | None = None) -> Prepared:
    """Compiles `case`.

    Args:
        case: what to compile.
        limit_bytes: refuses to run a case whose compiled plan (arguments, results and temporaries) needs more;
            None takes what the device has, on a CPU four fifths of the free memory.

    Raises:
        TooLarge: the plan exceeds `limit_bytes`.
        ValueError, NotImplementedError: the implementation does not do this case.
    """
    if case.implementation in IN_TORCH:
        return Prepared(*prepare_torch(case))
    return _prepare_jax(case, limit_bytes)


def _prepare_jax(case: Case, limit_bytes: int | None) -> Prepared:
    import jax
    import jax.numpy as jnp

    function, arguments = attention(case), inputs(case)
    limit_bytes = limit_bytes or _available_bytes(jax.devices()[0])
    seconds, temps, plans = [], [], []

    def compiled(f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        start = time.perf_counter()
        executable = jax.jit(f).lower(*args).compile()
        seconds.append(time.perf_counter() - start)
        plan: Any = executable.memory_analysis()
        temps.append(plan.temp_size_in_bytes)
        plans.append(plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes)
        if limit_bytes is not None and plans[-1] > limit_bytes:
            raise TooLarge(
                f"XLA plans {plans[-1] / 2**30:.2f} GiB for this case; the limit is {limit_bytes / 2**30:.2f} GiB."
            )
        return executable

    def both(cotangent: Any, *args: Any) -> Any:
        out, vjp = jax.vjp(function, *args)
        return out, vjp(cotangent)

    cotangent = jax.random.normal(jax.random.key(9), arguments[0].shape, jnp.float32).astype(
        arguments[0].dtype
    )
    setup: Callable[[], Any] = lambda: None  # noqa: E731
    if case.direction == "forward":
        main = compiled(function, *arguments)
        call: Callable[[Any], Any] = lambda _: main(*arguments)  # noqa: E731
    elif case.direction == "both":
        main = compiled(both, cotangent, *arguments)
        call = lambda _: main(cotangent, *arguments)  # noqa: E731
    else:
        forward = compiled(lambda *args: jax.vjp(function, *args)[1], *arguments)

        def setup() -> Any:
            return jax.block_until_ready(forward(*arguments))

        main = compiled(lambda vjp, c: vjp(c), setup(), cotangent)
        call = lambda residuals: main(residuals, cotangent)  # noqa: E731

    def run(what: Any, times: int) -> None:
        for _ in range(times):
            result = call(what)
        jax.block_until_ready(result)

    return Prepared(setup, run, seconds[-1], temps[-1], plans[-1])


def _available_bytes(device: Any) -> int | None:
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
