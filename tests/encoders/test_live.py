"""Parity with transformers itself, where torch is installed, and files written and read by both."""

import numpy as np
import pytest

from jaxattn.models import TextEncoder
from tests.encoders.helpers import states_of
from tests.encoders.make_encoder_fixtures import CONFIGS, batch, token_types, torch_model, torch_states

torch = pytest.importorskip("torch", reason="torch makes the models that this compares with")
transformers = pytest.importorskip(
    "transformers", reason="transformers makes the models that this compares with"
)
pytest.importorskip("safetensors")


HEADED = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "nomic_bert",
    "gte",
    "deberta-v3",
    "modernbert",
]


def compare(encoder, model, name):
    ids, mask = batch(model.config.pad_token_id)
    types = token_types(model.config)
    extra = {} if types is None else {"token_type_ids": types}
    theirs = torch_states(model, ids, mask, types)
    errors = [
        np.abs(np.asarray(ours)[mask] - state[mask]).max()
        for ours, state in zip(states_of(encoder, ids, mask, **extra), theirs, strict=True)
    ]
    print(f"{name}: largest error {max(errors):.1e} of values up to {np.abs(theirs).max():.1f}")
    assert max(errors) < 2e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_files_go_from_torch_to_here_and_back(name, tmp_path):
    model = torch_model(name)
    model.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    compare(encoder, model, name)
    encoder.save_pretrained(tmp_path / "ours")
    again, report = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all("pooler" in key for key in report["missing_keys"])
    ids, mask = batch(model.config.pad_token_id)
    np.testing.assert_array_equal(torch_states(again.eval(), ids, mask), torch_states(model, ids, mask))


@pytest.mark.parametrize("name", HEADED)
def test_the_encoder_of_a_classifier_is_found(name, tmp_path):
    config = torch_model(name).config
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert encoder.left_out and all(
        "classifier" in key or "pooler" in key or "head" in key for key in encoder.left_out
    )
    compare(encoder, model.base_model, f"{name}, from a classifier")
