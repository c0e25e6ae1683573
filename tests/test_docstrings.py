"""Every example in a docstring runs, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import jaxattn

MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxattn.__path__, "jaxattn."))


# Their examples build and compile whole models: two to four seconds each.
HEAVY = {
    "jaxattn.core.decode",
    "jaxattn.core.mechanism",
    "jaxattn.encoders.calibration",
    "jaxattn.encoders.text_encoder",
    "jaxattn.models.generate",
    "jaxattn.models.language_model",
    "jaxattn.models.masked_language_model",
    "jaxattn.models.pair_classifier",
    "jaxattn.models.sentence_encoder",
    "jaxattn.models.sequence_classifier",
    "jaxattn.models.text_classifier",
    "jaxattn.nn.attention",
    "jaxattn.nn.inceptive_head",
    "jaxattn.nn.inject",
    "jaxattn.nn.stack",
    "jaxattn.random_features.attention",
    "jaxattn.random_features.diagnosis.diagnose",
    "jaxattn.random_features.feature_map",
    "jaxattn.random_features.mechanism",
    "jaxattn.random_features.weights.fastfood",
    "jaxattn.tree.attention",
    "jaxattn.tree.mechanism",
    "jaxattn.tree.state",
}


def test_heavy_modules_exist():
    assert set(MODULES) >= HEAVY


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in MODULES]
)
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
    assert "Example:" not in text, "the pages show examples under the heading Examples:"
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert ">>>" in text, "no runnable example"
        assert "Returns:" in text or signature.return_annotation is None, "says not what it returns"
        described = text.partition("Args:")[2]
        missing = [
            name for name in signature.parameters if not re.search(rf"^ +\**{name}\b.*:", described, re.M)
        ]
        assert not missing, "arguments without a description"


@pytest.mark.parametrize("name", [*jaxattn.COMPONENTS, *jaxattn.WEIGHTS])
def test_components_and_weights_are_documented(name):
    kind = {**jaxattn.COMPONENTS, **jaxattn.WEIGHTS}[name]
    text = kind.__doc__ or ""
    assert len(text) > 60 and not text.startswith(f"{kind.__name__}("), "the docstring that dataclasses make"
