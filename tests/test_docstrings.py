"""Every example in a docstring runs, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import jaxattn

MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxattn.__path__, "jaxattn."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failures == 0


def _public():
    for package in (
        jaxattn,
        jaxattn.encoders,
        jaxattn.positions,
        jaxattn.nn,
        jaxattn.models,
        jaxattn.testing,
    ):
        for name in package.__all__:
            if callable(thing := getattr(package, name)):
                yield pytest.param(thing, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize("thing", list(_public()))
def test_public_names_are_documented(thing):
    text = inspect.getdoc(thing) or ""
    assert text.splitlines()[:1] and text.splitlines()[0].strip(), "no summary line"
    assert ">>>" in text or not inspect.isfunction(thing), "no runnable example"
    assert "Example:" not in text, "the pages show examples under the heading Examples:"
