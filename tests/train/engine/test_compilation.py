"""The persistent compilation cache of a training process."""

import jax
import pytest

from jaxattn_train.cli.options import RunOptions
from jaxattn_train.engine import compilation
from jaxattn_train.engine.compilation import start_process


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What the process asks of JAX, which has no cache yet."""
    asked = {}
    monkeypatch.setattr(compilation, "cache", lambda: tmp_path)
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    return asked


def test_compiled_programs_are_kept_in_the_users_cache(settings, tmp_path):
    start_process(RunOptions())
    assert settings == {"jax_compilation_cache_dir": str(tmp_path / "xla")}


def test_a_cache_of_the_environment_is_left_alone(settings, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "/somewhere")
    start_process(RunOptions())
    assert not settings


def test_a_flag_turns_the_cache_off(settings, monkeypatch):
    start_process(RunOptions(compilation_cache=False))
    assert settings == {"jax_enable_compilation_cache": False}
