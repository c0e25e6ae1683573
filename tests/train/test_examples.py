"""The examples in the docstrings of `train` run."""

import doctest
import importlib
import pkgutil

import pytest

import jaxattn_train


@pytest.mark.parametrize(
    "name", sorted(m.name for m in pkgutil.walk_packages(jaxattn_train.__path__, "jaxattn_train."))
)
def test_examples_run(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failures == 0
