"""The common suite compiles hundreds of small programs and runs each once: compile them fast, not well."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
