"""Every function of jaxattn is checked against its jaxtyping annotations while the tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight CPU devices, so that sharding is tested for real; single-device tests just use the first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jaxtyping
import pytest

# The suite compiles thousands of small programs and runs each once or twice: compile them fast, not well.
jax.config.update("jax_disable_most_optimizations", True)

jaxtyping.install_import_hook("jaxattn", "beartype.beartype")


@pytest.fixture
def no_typecheck():
    """Switches the shape checker off, so that a test of bad input sees the library's own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
