"""Every function of jaxattn is checked against its jaxtyping annotations while the tests run."""

import collections
import functools
import gc
import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight CPU devices, so that sharding is tested for real; single-device tests just use the first.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # The older emitters compile in a third of the time, and code in one piece in half of that; small programs gain
    # nothing from pieces. Later releases do not know the first flag, and abort, and gain nothing by the second.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

# Workers, command-line processes and later runs share compiled programs; `make clean` removes them. Storing all of
# them, however small, costs nothing that shows, and saves a third of the time of a file that ran before.
_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402  (JAX reads the environment as it is imported)
import jax._src.interpreters.mlir as mlir  # noqa: E402
import jaxtyping  # noqa: E402  (JAX reads the environment as it is imported)
import pytest  # noqa: E402  (JAX reads the environment as it is imported)

# The suite compiles thousands of small programs and runs each once or twice: compile them fast, not well.
jax.config.update("jax_disable_most_optimizations", True)

# JAX makes an MLIR context for every program, a fifth of the time of compiling a small one, and keeps it: more than
# a megabyte each. One for all is enough.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# JAX keeps millions of objects alive, which each collection walks through: a seventh of the time.
gc.set_threshold(20_000, 10, 10)

jaxtyping.install_import_hook("jaxattn", "beartype.beartype")


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items):
    """Of the cases of a test with the mark few(n), all but n are slow."""
    cases = collections.defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("few"):
            cases[item.path, item.cls, item.originalname, mark.args[0]].append(item)
    for (*_, count), same in cases.items():
        kept = {index * (len(same) - 1) // max(count - 1, 1) for index in range(count)}
        for index, item in enumerate(same):
            if index not in kept:
                item.add_marker(pytest.mark.slow)


_compiled = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: _compiled.update([event]))


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drops compiled programs when there are many, or a worker would grow to gigabytes."""
    yield
    if _compiled["/jax/core/compile/backend_compile_duration"] > 1500:
        _compiled.clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def optimised():
    """Compiles with XLA's optimisations, as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def no_typecheck():
    """Switches the shape checker off, so that a test of bad input sees the library's own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
