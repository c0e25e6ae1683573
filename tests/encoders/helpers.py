"""The fixtures of `make_encoder_fixtures.py` as models, loaded once a process."""

import functools
import json
import pathlib
import tempfile

import numpy as np
import pytest
from flax import nnx

from jaxattn.models import EncoderConfig, TextEncoder
from tests.encoders.make_encoder_fixtures import FIXTURES, SIZES

safetensors_numpy = pytest.importorskip("safetensors.numpy")
BERT = {"model_type": "bert", **SIZES}
states_of = nnx.jit(lambda encoder, *batch, **types: encoder.hidden_states(*batch, **types))


def fixture(name):
    """The arrays of a fixture (config, batch, states), and the weights of its model."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {key.removeprefix("weights/"): arrays.pop(key) for key in list(arrays) if "weights/" in key}
    return arrays, weights


def write(folder, config, weights, *, name="model.safetensors"):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    safetensors_numpy.save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / name)
    return folder


@functools.cache
def _loaded(name):
    arrays, weights = fixture(name)
    with tempfile.TemporaryDirectory() as folder:
        encoder = TextEncoder.from_pretrained(write(pathlib.Path(folder), str(arrays["config"]), weights))
    return encoder, arrays


def load(name):
    """A fixture's model, which the caller may change, and its arrays."""
    encoder, arrays = _loaded(name)
    return nnx.clone(encoder), arrays


def random_encoder(settings=BERT):
    return TextEncoder(EncoderConfig.from_dict(settings), rngs=nnx.Rngs(0))


def types_of(arrays):
    return {"token_type_ids": arrays["token_type_ids"]} if "token_type_ids" in arrays else {}


def same_tensors(folder, weights):
    """The saved file holds the weights, bit by bit, but for those of the pooler."""
    saved = safetensors_numpy.load_file(folder / "model.safetensors")
    assert set(saved) <= set(weights)
    assert all("pooler" in name for name in set(weights) - set(saved))
    for name, array in saved.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


JINA = {"model_type": "bert", **SIZES, "position_embedding_type": "alibi", "feed_forward_type": "geglu"}
