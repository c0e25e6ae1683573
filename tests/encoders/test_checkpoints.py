"""Files of checkpoints: shards, old names, dtypes, placement, the hub's cache, and what is wrong with them."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.core.parameters import axes_of
from jaxattn.models import TextEncoder
from tests.encoders.helpers import (
    BERT,
    fixture,
    random_encoder,
    safetensors_numpy,
    same_tensors,
    states_of,
    write,
)


def test_a_task_model_in_shards_with_old_names_and_half_precision(tmp_path):
    arrays, weights = fixture("bert")
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    renamed["bert.embeddings.position_ids"] = np.arange(32)[None]
    renamed["cls.predictions.bias"] = np.zeros(60, np.float32)
    wide = "bert.embeddings.word_embeddings.weight"
    renamed[wide] = renamed[wide].astype(jnp.bfloat16)
    names = sorted(renamed)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in files.items():
        write(tmp_path, str(arrays["config"]), {name: renamed[name] for name in part}, name=file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert encoder.left_out == ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.predictions.bias")
    encoder.save_pretrained(tmp_path / "saved")
    rounded = weights["embeddings.word_embeddings.weight"].astype(jnp.bfloat16).astype(np.float32)
    same_tensors(tmp_path / "saved", weights | {"embeddings.word_embeddings.weight": rounded})
    (tmp_path / min(files)).unlink()
    with pytest.raises(ValueError, match=r"lacks model-00001-of-00002\.safetensors"):
        TextEncoder.from_pretrained(tmp_path)


def test_parameters_go_where_they_belong_in_the_wanted_dtype(tmp_path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharding(path, axes, shape):
        assert len(axes) == len(shape)
        spec = [
            "x" if axis == "mlp" and size % 4 == 0 else None for axis, size in zip(axes, shape, strict=True)
        ]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    arrays, weights = fixture("modernbert")
    write(tmp_path, str(arrays["config"]), weights)
    encoder = TextEncoder.from_pretrained(tmp_path, sharding=sharding)
    kernel = encoder.blocks[1].mlp.up.kernel
    assert axes_of(kernel) == ("embed", "mlp")
    assert {shard.data.shape for shard in kernel[...].addressable_shards} == {(16, 6)}
    assert len(encoder.embeddings.word[...].addressable_shards) == 4
    mask = arrays["attention_mask"]
    last = states_of(encoder, arrays["input_ids"], mask)[-1]
    np.testing.assert_allclose(last[mask], arrays["states"][-1][mask], atol=2e-5)
    half = TextEncoder.from_pretrained(tmp_path, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.bfloat16)}
    last = states_of(half, arrays["input_ids"], mask)[-1]
    assert last.dtype == jnp.bfloat16
    assert 1e-4 < np.abs(last.astype(np.float32)[mask] - arrays["states"][-1][mask]).max() < 0.3
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_errors_of_files_say_what_is_wrong(tmp_path):
    arrays, weights = fixture("bert")
    config = json.loads(str(arrays["config"]))

    def fails(message):
        with pytest.raises(ValueError, match=message):
            TextEncoder.from_pretrained(tmp_path)

    fails(r"must hold a config\.json")
    (tmp_path / "config.json").write_text("{")
    fails(r"config\.json is not JSON")
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails(r"must hold weights as model\.safetensors; it has none")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    fails(
        r"only pickled ones \(pytorch_model\.bin\), which can run code when read.*AutoModel.*save_pretrained"
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    fails(r"model\.safetensors cannot be read; download it again")
    write(tmp_path, config, weights)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    fails(r"model\.safetensors cannot be read; download it again")
    missing, misshapen, extra = (
        "encoder.layer.1.output.dense.bias",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.2.output.dense.bias",
    )
    changed = weights | {misshapen: weights[misshapen][:8], extra: weights[missing]}
    del changed[missing]
    write(tmp_path, config, changed)
    fails(
        rf"(?s)3 tensors in .* do not fit.*{extra}: not a part.*{misshapen}: shape \(8, 16\), expected \(16, 16\)"
        rf".*{missing}: missing"
    )
    write(tmp_path, config, {missing: weights[missing]})
    fails(r"must hold one encoder, with a tensor embeddings\.word_embeddings\.weight")
    write(tmp_path, config, weights | {misshapen: weights[misshapen].astype(np.int8)})
    fails(r"dtype I8, expected one of F16, BF16, F32, F64")
    with pytest.raises(ValueError, match="there is no folder"):
        TextEncoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="revision is for names of repositories"):
        TextEncoder.from_pretrained(tmp_path, revision="main")


def test_a_repository_in_the_cache_is_read_at_the_wanted_revision(tmp_path):
    pytest.importorskip("huggingface_hub")
    arrays, weights = fixture("bert")
    repository = tmp_path / "models--some--model"
    for revision, commit, width in (("main", "a" * 40, 4), ("old", "b" * 40, 5)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        changed = json.loads(str(arrays["config"])) | {"pad_token_id": width}
        write(repository / "snapshots" / commit, changed, weights)
    cached = {"local_files_only": True, "cache_dir": tmp_path}
    assert TextEncoder.from_pretrained("some/model", **cached).config.pad_token_id == 4
    assert TextEncoder.from_pretrained("some/model", revision="old", **cached).config.pad_token_id == 5


def test_what_is_not_in_the_cache_says_what_to_do(tmp_path):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(FileNotFoundError, match=r"Run once with a connection.*or give the path of a folder"):
        TextEncoder.from_pretrained("some/model", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a repository"):
        TextEncoder.from_pretrained("some model", local_files_only=True, cache_dir=tmp_path)


def test_without_the_extra_the_library_imports_and_the_error_names_it(tmp_path):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('safetensors', 'tokenizers', 'huggingface_hub')))\n"
        "import jaxattn, jaxattn.models\n"
        "jaxattn.models.TextEncoder.from_pretrained(sys.argv[1])"
    )
    arrays, weights = fixture("bert")
    write(tmp_path, str(arrays["config"]), weights)
    root = pathlib.Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert (
        "ImportError: pretrained encoders need safetensors: pip install 'jaxattn[pretrained]'"
        in result.stderr
    )


def test_the_norm_that_deberta_saves_without_relative_positions_is_left_alone(tmp_path):
    """transformers makes and saves encoder.LayerNorm whenever norm_rel_ebd asks for it, and does not use it here."""
    settings = {**BERT, "model_type": "deberta-v2", "relative_attention": False, "norm_rel_ebd": "layer_norm"}
    encoder = random_encoder(settings)
    encoder.save_pretrained(tmp_path)
    weights = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    extra = {f"encoder.LayerNorm.{name}": np.ones(16, np.float32) for name in ("weight", "bias")}
    write(tmp_path, settings, weights | extra)
    again = TextEncoder.from_pretrained(tmp_path)
    ids = np.arange(6)[None]
    np.testing.assert_array_equal(states_of(again, ids)[-1], states_of(encoder, ids)[-1])
    write(tmp_path, {**settings, "relative_attention": True}, weights | extra)
    with pytest.raises(ValueError, match=r"encoder\.rel_embeddings\.weight: missing"):
        TextEncoder.from_pretrained(tmp_path)
