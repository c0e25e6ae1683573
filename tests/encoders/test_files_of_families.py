"""Checkpoints of every family in shards, with the prefix of a model with a head and without one."""

import json

import pytest

from jaxattn.encoders.heads.names import PREFIXES
from jaxattn.models import TextEncoder
from tests.encoders.helpers import JINA, fixture, random_encoder, safetensors_numpy, same_tensors, write

NAMES = ("electra", "albert", "mpnet", "nomic_bert", "gte", "jina-bert")


def checkpoint(name, folder):
    """The config.json and the tensors of a small model, as they are without a prefix."""
    if name != "jina-bert":
        arrays, weights = fixture(name)
        return json.loads(str(arrays["config"])), weights
    random_encoder(JINA).save_pretrained(folder)
    return JINA, safetensors_numpy.load_file(folder / "model.safetensors")


@pytest.mark.few(1)
@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_shards_with_and_without_a_prefix_are_read(name, prefix, tmp_path):
    config, weights = checkpoint(name, tmp_path / "whole")
    start = f"{PREFIXES.get(name, name)}." if prefix else ""
    stored = {start + key: value for key, value in weights.items()}
    places = {key: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, key in enumerate(sorted(stored))}
    for file in set(places.values()):
        write(tmp_path, config, {key: stored[key] for key in stored if places[key] == file}, name=file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert all(tensor.removeprefix(start).startswith("pooler") for tensor in encoder.left_out)
    encoder.save_pretrained(tmp_path / "saved")
    same_tensors(tmp_path / "saved", weights)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"lacks {file}"):
        TextEncoder.from_pretrained(tmp_path)
