import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

from jaxattn_train.engine import resume
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import ModelConfig
from jaxattn_train.tasks.charlm.model import language_model
from jaxattn_train.tasks.charlm.sample import write
from jaxattn_train.tasks.classify.config import ClassifyModel

VOCABULARY = "abcdefgh"


@pytest.fixture(scope="module")
def model():
    functional = language_model(
        ModelConfig(attention="softmax", num_layers=1, num_heads=2, features=16, context_length=8),
        len(VOCABULARY),
    )
    return functional.module(jax.jit(functional.init)(jax.random.key(0)))


@pytest.mark.parametrize("prompt", ["a", "abcdefghabcdefgh"])
@pytest.mark.parametrize("tokens", [1, 30])
def test_writes_any_length_from_any_prompt(model, prompt, tokens):
    text = write(model, VOCABULARY, prompt, tokens, seed=1)
    assert text.startswith(prompt)
    assert len(text) == len(prompt) + tokens
    assert set(text) <= set(VOCABULARY)


def test_within_the_context_it_is_the_likeliest_continuation(model):
    text = write(model, VOCABULARY, "abc", 5, temperature=0)
    ids = [VOCABULARY.index(c) for c in text]
    likeliest = model(jnp.array([ids])).argmax(-1)[0]
    assert likeliest[2:7].tolist() == ids[3:]


def test_beyond_the_context_it_goes_on_from_the_last_half(model):
    text = write(model, VOCABULARY, "abc", 12, temperature=0)
    ids = [VOCABULARY.index(c) for c in text]
    likeliest = model(jnp.array([ids[4:12]])).argmax(-1)[0]  # the first piece after the slide starts at 4
    assert likeliest[3:7].tolist() == ids[8:12]


def test_a_run_from_before_layers_could_be_scanned_is_read_as_it_was_written():
    """Its checkpoints have parameters layer by layer, however many layers there are."""
    now = dataclasses.asdict(ModelConfig(attention="softmax", num_layers=4))
    before = {name: value for name, value in now.items() if name != "scan_layers"}
    names = language_model(ModelConfig.of_record({"config": {"model": before}}), len(VOCABULARY)).shapes
    assert sum(".3." in name for name in names) == 16 and not any("stacked" in name for name in names)
    assert ModelConfig.of_record({"config": {"model": now}}).scan_layers == "auto"
    text = dataclasses.asdict(ClassifyModel(num_layers=4))
    del text["scan_layers"]
    assert ClassifyModel.of_record({"config": {"model": text}}).scan_layers == "off"
    store = types.SimpleNamespace(folder=pathlib.Path("run/checkpoints"))
    resume._check_same_run(
        store, {"identity": {"num_layers": 4}}, {"num_layers": 4, "scan_layers": "off"}, {}
    )
    with pytest.raises(UserError, match="--scan-layers 'off' there and 'auto' here"):
        resume._check_same_run(store, {"identity": {}}, {"scan_layers": "auto"}, {})
