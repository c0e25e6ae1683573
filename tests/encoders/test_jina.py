"""JinaBERT, which transformers does not have, beside its formulas in float64."""

import math

import numpy as np
from flax import nnx

from jaxattn.models import TextEncoder
from tests.encoders.helpers import JINA, random_encoder, safetensors_numpy, states_of
from tests.encoders.make_encoder_fixtures import batch

HEADS, WIDTH = 2, 8


def naive(weights, ids, mask):
    """All hidden states, by the formulas of arXiv 2310.19923 with the tensors' published names."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    states = [norm(x, "embeddings.LayerNorm")]
    length = ids.shape[1]
    place = np.arange(length)
    slopes = np.array([2.0**-4, 2.0**-8])
    bias = -slopes[:, None, None] * np.abs(place[:, None] - place)
    for layer in range(2):
        name, x = f"encoder.layer.{layer}", states[-1]
        q, k, v = (
            dense(x, f"{name}.attention.self.{part}").reshape(-1, length, HEADS, WIDTH).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / math.sqrt(WIDTH) + bias
        scores = np.where(mask[:, None, None], scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weight / weight.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = norm(dense(mixed, f"{name}.attention.output.dense") + x, f"{name}.attention.output.LayerNorm")
        gated, plain = np.split(dense(x, f"{name}.mlp.gated_layers"), 2, axis=-1)
        states.append(norm(dense(gelu(gated) * plain, f"{name}.mlp.wo") + x, f"{name}.mlp.layernorm"))
    return states


def test_jina_is_its_formulas(tmp_path):
    encoder = random_encoder(JINA)
    for seed, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(encoder, nnx.Param))):
        if variable.ndim == 1:  # offsets and gains that are not 0 and 1
            variable.set_value(variable[...] + 0.2 * np.random.default_rng(seed).normal(size=variable.shape))
    encoder.save_pretrained(tmp_path)
    ids, mask = batch(0)
    expected = naive(safetensors_numpy.load_file(tmp_path / "model.safetensors"), ids, mask)
    again = TextEncoder.from_pretrained(tmp_path)
    assert again.config.model_type == "jina-bert" and again.config.position_rows == 0
    for ours, theirs in zip(states_of(again, ids, mask), expected, strict=True):
        np.testing.assert_allclose(
            ours[mask], theirs[mask], atol=2.2e-6
        )  # three times what docs/encoders.md says
