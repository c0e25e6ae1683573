"""Hidden states, activations and buckets beside those of transformers, from fixtures."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.encoders.config import ACTIVATIONS
from jaxattn.encoders.deberta.relative import log_buckets
from jaxattn.encoders.families import FAMILIES
from tests.encoders.helpers import fixture, load, same_tensors, states_of, types_of
from tests.encoders.make_encoder_fixtures import CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.few(6)
def test_hidden_states_are_those_of_torch_and_padding_changes_nothing(name, tmp_path):
    encoder, arrays = load(name)
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    assert encoder.left_out == tuple(sorted(k for k in fixture(name)[1] if "pooler" in k))
    states = states_of(encoder, ids, mask, **types_of(arrays))
    assert len(states) == encoder.config.num_layers + 1 == len(arrays["states"])
    for ours, theirs in zip(states, arrays["states"], strict=True):
        np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-5)
    assert all(jnp.isfinite(state).all() for state in states)
    encoder.save_pretrained(tmp_path / "saved")
    same_tensors(tmp_path / "saved", fixture(name)[1])
    if name in ("xlm-roberta", "deberta-c2p-alone"):
        return  # the same code as others for what follows
    # More padding, with an id in it that is no padding id.
    more = np.pad(ids, ((0, 0), (0, 5)), constant_values=7)
    types = {key: np.pad(value, ((0, 0), (0, 5))) for key, value in types_of(arrays).items()}
    padded = states_of(encoder, more, np.pad(mask, ((0, 0), (0, 5))), **types)
    rounding = 4e-6 if name == "nomic_bert" else 2e-6  # products of two linear functions of the vectors
    for ours, theirs in zip(padded, states, strict=True):
        np.testing.assert_allclose(ours[:, : ids.shape[1]][mask], theirs[mask], atol=rounding)


@pytest.mark.slow
def test_the_documentation_says_how_near_every_family_is():
    """The figures of docs/encoders.md hold here, and no family is missing."""
    page = (pathlib.Path(__file__).parents[2] / "docs/encoders.md").read_text(encoding="utf-8")
    said = {
        name: float(number)
        for name, number in re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.e-]+) \|$", page, re.M)
    }
    assert set(said) == {*CONFIGS, "jina-bert"}
    assert {*(config["model_type"] for config in CONFIGS.values()), "jina-bert"} == set(FAMILIES)
    for name in CONFIGS:
        encoder, arrays = load(name)
        ids, mask = arrays["input_ids"], arrays["attention_mask"]
        states = states_of(encoder, ids, mask, **types_of(arrays))
        error = max(np.abs(a[mask] - b[mask]).max() for a, b in zip(states, arrays["states"], strict=True))
        assert error <= 3 * said[name], f"{name}: {error:.1e}"


def test_activations_and_buckets_are_those_of_torch():
    arrays, _ = fixture("functions")
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(
            function(arrays["x"]), arrays[f"activation/{name}"], atol=2e-6, err_msg=name
        )
    for name in arrays:
        if name.startswith("buckets/"):
            size, most = map(int, name.split("/")[1:])
            np.testing.assert_array_equal(
                log_buckets(arrays["distance"].astype(int), size, most), arrays[name]
            )
