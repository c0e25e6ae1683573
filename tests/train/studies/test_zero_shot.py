"""Other attention in a trained classifier without training: measures against counts and loops, and the command."""

import json
import pathlib
import shlex
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn import Tree, hierarchical_energy
from jaxattn.models import calibrate
from jaxattn.nn import (
    AttentionInputs,
    LayerSizes,
    RandomFeatures,
    Softmax,
    parse_mechanism,
    replace_attention,
)
from jaxattn.tree.mechanism import Hierarchical
from jaxattn_train.__main__ import main
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.errors import UserError
from jaxattn_train.studies.zero_shot.command import ZeroShotConfig, layer_numbers, make_variants
from jaxattn_train.studies.zero_shot.divergence import attention_weights, divergence, has_distribution
from jaxattn_train.studies.zero_shot.layers import LayeredClassifier
from jaxattn_train.studies.zero_shot.measure import batches_of, calibration_batch
from jaxattn_train.studies.zero_shot.table import table
from jaxattn_train.tasks.predict.classifier import load
from tests.train.tiny_encoder import save_tiny_encoder

ROOT = pathlib.Path(__file__).resolve().parents[3]
LENGTH, HEADS, WIDTH = 12, 2, 4
KINDS = ("awful", "fine", "great")


@pytest.fixture(scope="module")
def tensors():
    """Queries, keys and a mask of two texts, the second with padding."""
    query, key = jax.random.normal(jax.random.key(0), (2, 2, LENGTH, HEADS, WIDTH))
    return query, key, jnp.arange(LENGTH) < jnp.array([[LENGTH], [7]])


@pytest.fixture(scope="module")
def weights_of(tensors):
    """Attention matrices of a mechanism that is spelled out."""

    def compute(spelling):
        built = parse_mechanism(spelling).build(LayerSizes(HEADS, WIDTH), rngs=nnx.Rngs(0))
        return jax.jit(lambda *call: attention_weights(built, *call))(*tensors)

    return compute


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny classifier of two layers, trained for two steps on texts of at most 8 tokens."""
    folder = tmp_path_factory.mktemp("zero_shot")
    (folder / "tiny").mkdir()
    save_tiny_encoder(folder / "tiny", layers=2)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 21)):
        lines = ["text,label"]
        for i in range(count):
            words = [f"w{n}" for n in rng.integers(0, 20, rng.integers(1, 4))] + [KINDS[i % 3]] * 3
            lines.append(f"{' '.join(rng.permutation(words))},{KINDS[i % 3]}")
        (folder / f"{name}.csv").write_text("\n".join(lines))
    words = ["finetune", "--dataset", "files", "--encoder", folder / "tiny", "--head", "mean"]
    words += ["--train-file", folder / "train.csv", "--test-file", folder / "test.csv", "--max-length", 8]
    words += shlex.split("--freeze-encoder --steps 2 --warmup 1 --eval-every 2 --relevance-texts 0 --lr 3e-3")
    assert main([str(word) for word in [*words, "--out", folder / "run"]]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def trained(run):
    return load(str(run))


@pytest.fixture(scope="module")
def sharp(trained):
    """Parameters with which attention is far from uniform."""
    grown = (".query.kernel", ".key.kernel", ".value.kernel")
    return {name: 40 * x if name.endswith(grown) else x for name, x in trained.params.items()}


@pytest.fixture(scope="module")
def texts(trained):
    """(tokens, mask) of two texts."""
    ids, mask = trained.encoder.tokenize(["great w1 w2 w3 w4", "awful w5"], pad_to=8)
    return jnp.asarray(ids), jnp.asarray(mask)


def test_softmax_has_no_divergence_from_itself(tensors, weights_of):
    for spelling in ("softmax", f"tree:{LENGTH}"):  # a tree of one family is softmax
        assert abs(divergence(weights_of(spelling), *tensors)) < 1e-4, spelling


def test_divergence_is_the_sum_over_real_rows(tensors, weights_of):
    query, key, mask = map(np.asarray, tensors)
    for spelling in ("tree:3:noself", "features:posrf-gaussian:8"):
        weights = np.asarray(weights_of(spelling), np.float64)
        total = 0.0
        for text in range(2):
            real = int(mask[text].sum())
            for head in range(HEADS):
                scores = query[text, :real, head] @ key[text, :real, head].T / WIDTH**0.5
                softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
                rows = weights[text, head, :real, :real]
                np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
                positive = np.where(rows > 0, rows, 1)
                total += (rows * (np.log(positive) - np.log(softmax))).sum()
        found = float(divergence(weights_of(spelling), *tensors))
        assert found == pytest.approx(total, rel=1e-4), spelling
        assert found > 0.1, spelling


def test_a_tree_with_self_is_the_closest_with_its_blocks(tensors, weights_of):
    """So the published form, uniform attention and mixtures, which have the same blocks, are not closer."""
    query, key, mask = tensors
    best, without = weights_of("tree:2"), weights_of("tree:2:noself")
    least = divergence(best, *tensors)
    uniform = jnp.broadcast_to(mask[:, None, None, :] / mask.sum(-1)[:, None, None, None], best.shape)
    for other in (without, uniform, 0.9 * best + 0.1 * without, 0.9 * best + 0.1 * uniform):
        assert divergence(other, *tensors) > least + 1e-3
    # The theorem of the paper says how far the best is: T phi + sum of log Z.
    energy = hierarchical_energy(query[0], key[0], Tree.uniform(LENGTH, 2))
    scores = jnp.einsum("TNH,SNH->NTS", query[0], key[0]) / WIDTH**0.5
    expected = (LENGTH * energy + jax.nn.logsumexp(scores, axis=-1).sum(axis=-1)).sum()
    found = divergence(best[:1], query[:1], key[:1], mask[:1])
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_weights_of_features_give_their_output(tensors, weights_of):
    query, key, mask = tensors
    spelling = "features:oprf-orf:16"
    built = parse_mechanism(spelling).build(LayerSizes(HEADS, WIDTH), rngs=nnx.Rngs(0))
    expected = jax.jit(lambda q, k, mask: built(q, k, k, AttentionInputs(token_mask=mask)))(query, key, mask)
    found = jnp.einsum("BNTS,BSNH->BTNH", weights_of(spelling), key)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :7], expected[1, :7], atol=1e-5)


def test_features_of_either_sign_have_no_divergence():
    for spelling, positive in (("trigrf-orf", False), ("oprf-orf", True), ("oprf-sgq", False)):
        built = parse_mechanism(f"features:{spelling}:8").build(LayerSizes(HEADS, WIDTH), rngs=nnx.Rngs(0))
        assert has_distribution(built) == positive, spelling


@pytest.mark.slow
def test_layer_by_layer_is_the_whole_model(trained, sharp, texts):
    model = trained.functional.module(sharp)
    classifier = LayeredClassifier(model)
    tokens, mask = texts
    states = classifier.states(tokens, mask)
    whole = jax.jit(lambda params, tokens: trained.functional.apply(params, tokens, token_mask=mask))(
        sharp, tokens
    )
    np.testing.assert_allclose(classifier.end(states[-1], mask), whole, atol=1e-5)
    tree = Hierarchical((2,), include_self=False)
    layers = classifier.fitted(classifier.replaced(tree), [1], states, mask)
    encoder = replace_attention(model.encoder, tree, layers=[1])
    expected = nnx.jit(lambda encoder, head, tokens: head(encoder(tokens, mask), mask))(
        encoder, model.head, tokens
    )
    assert abs(expected - whole).max() > 1e-3
    np.testing.assert_allclose(classifier.run_from(1, layers, states[1], mask), expected, atol=1e-5)


@pytest.mark.slow
def test_features_are_fitted_as_calibrate_does(trained, sharp, texts):
    model = trained.functional.module(sharp)
    classifier = LayeredClassifier(model)
    tokens, mask = texts
    features = RandomFeatures("oprf", "orf", 8)
    replaced = classifier.replaced(features, seed=3)
    states = classifier.states(tokens, mask)
    found = classifier.fitted(replaced, [0, 1], states, mask)
    encoder = replace_attention(model.encoder, features, rngs=nnx.Rngs(3))
    expected = calibrate(encoder, tokens, mask, passes=2)
    alone = classifier.fitted(replaced, [0, 1], states, mask, independent=True)
    for number, layer in enumerate(found):
        here, there, apart = (
            nnx.state(mechanism)
            for mechanism in (
                nnx.merge(*layer).attention.mechanism,
                expected.blocks[number].attention.mechanism,
                nnx.merge(*alone[number]).attention.mechanism,
            )
        )
        chex.assert_trees_all_close(here, there, rtol=1e-3, atol=1e-5)
        same = here["moments_query_mean"][...] == apart["moments_query_mean"][...]
        assert bool(same.all()) == (number == 0), "above the first layer its input is another"


def test_texts_are_padded_to_one_of_two_lengths():
    lengths = np.array([3, 9, 4, 30, 8, 5, 7, 10])
    part = Sequences.of([np.full(n, n) for n in lengths], np.zeros(8))
    batches = batches_of(part, batch_size=3)
    assert [batch.tokens.shape for batch in batches] == [(3, 8), (3, 8), (3, 32)]
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(8))
    for batch in batches:
        assert batch.mask.sum(axis=1).tolist() == np.resize(lengths[batch.rows], len(batch.mask)).tolist()
    assert [len(batch.rows) for batch in batches_of(part, 8, texts=4)] == [4]
    assert calibration_batch(part, 8, 3).rows.tolist() == [0, 4, 6]


@pytest.mark.slow
def test_the_command_writes_record_and_table(run, tmp_path, cli):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:zero-shot-files -->\nold\n<!-- /results -->\nafter\n")
    words = ["zero-shot", "--run", run, "--out", tmp_path / "study.json", "--tables", page]
    words += shlex.split(
        "--branching 2 --features posrf-orf:8 trigrf-orf:8 --layers last:1 all --tree-layers 0 --seeds 2 "
        "--batch-size 8 --repeats 2 --long 24 --encoder-name tiny"
    )
    code, _, err = cli(*words)
    assert code == 0, err
    record = json.loads((tmp_path / "study.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert record["softmax"]["accuracy"] == pytest.approx(summary["accuracy"]["mean"])
    assert record["model"]["encoder"] == "tiny"
    assert record["lengths"] == [8]
    rows = {(row["variant"], row["layers"]): row for row in record["rows"]}
    trees, features = ("tree:2", "tree:2:noself"), ("features:posrf-orf:8", "features:trigrf-orf:8")
    assert set(rows) == {(t, s) for t in trees for s in ("last:1", "all", "0")} | {
        (f, s) for f in features for s in ("last:1", "all")
    }
    row = rows["tree:2", "all"]
    assert row["numbers"] == [0, 1]
    assert row["divergence"]["mean"] == pytest.approx(np.mean(row["divergence_by_layer"]))
    assert row["divergence"]["mean"] < rows["tree:2:noself", "all"]["divergence"]["mean"]
    assert row["relative_seconds"] > 0
    without = rows["tree:2:noself", "all"]
    difference = without["right_without_self_only"] - without["right_with_self_only"]
    assert difference / 21 == pytest.approx(without["accuracy"]["mean"] - row["accuracy"]["mean"])
    assert "relative_seconds" not in without, "it does the same work as with self"
    sizes = (record["lengths"][0], 2, 8)
    one, exact = Hierarchical((2,)).flops(*sizes).forward, Softmax().flops(*sizes).forward
    assert row["attention_flops"] == 2 * one
    assert rows["tree:2", "0"]["attention_flops"] == one + exact
    assert rows["tree:2", "0"]["divergence"]["mean"] == row["divergence_by_layer"][0]
    assert len(rows["features:posrf-orf:8", "all"]["accuracy"]["per_seed"]) == 2
    assert rows["features:posrf-orf:8", "all"]["divergence"]["mean"] > 0
    assert rows["features:trigrf-orf:8", "all"]["divergence"] is None
    assert [row["variant"] for row in record["long"]] == ["softmax", "tree:2", *features]
    # Per token and layer: query, key, value, out of 16 x 16, and 16 x 32 twice.
    assert record["softmax"]["dense_flops"] == 2 * 2 * sizes[0] * (4 * 256 + 2 * 512)
    text = page.read_text()
    assert text.startswith("before")
    assert "| `tree:2:noself` |" in text
    assert "old" not in text


def test_sets_of_layers():
    assert layer_numbers("all", 3) == (0, 1, 2)
    assert layer_numbers("first:2", 3) == (0, 1)
    assert layer_numbers("2,-3,2", 3) == (0, 2)
    for bad in ("last:0", "first:4", "last:x", "3", "-4", "0,7", "middle", ""):
        with pytest.raises(UserError, match="--layers must be last:K"):
            layer_numbers(bad, 3)


@pytest.mark.slow
def test_mistakes_are_named(run, tmp_path, cli):
    def error(*words):
        code, _, err = cli("zero-shot", *words)
        assert code == 2, err
        return err

    assert "there is no folder" in error("--run", tmp_path / "none")
    assert "has no summary.json" in error("--run", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text('{"config": {"model": {}}}')
    assert "is of another command" in error("--run", tmp_path / "other")
    assert "limit of 64 tokens; got 65" in error("--run", run, "--long", 65)
    assert "--seeds must be at least 1" in error("--run", run, "--seeds", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branching": (bad,)}, f"--branching must be .* such as 16 or 2x4x8x16; got '{bad}'")
        for bad in ("1", "4x0", "x", "2.5")
    ]
    + [
        ({"layers": ("last:3",)}, "K from 1 to 2"),
        ({"tree_layers": ("5",)}, "numbers from -2 to 1"),
        ({"features": ("best-orf:64",)}, "--features must be such as sderf-orf:64"),
        ({"branching": ("2", "2"), "features": ()}, "none twice"),
    ],
)
def test_unusable_variants_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_variants(ZeroShotConfig("run", **options), 2)


@pytest.mark.slow
def test_other_classes_are_not_measured(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    test = tmp_path / "test.csv"
    test.write_text("text,label\n" + "w1 w2,sad\nw2,happy\n" * 20)
    summary["config"]["data"] |= {"train_file": str(test), "test_file": str(test), "validation_share": 0.5}
    (copy / "summary.json").write_text(json.dumps(summary))
    code, _, err = cli("zero-shot", "--run", copy)
    assert code == 2
    assert "must have the classes that --run was trained on, awful, fine, great; they have happy, sad" in err


def test_the_documented_table_is_that_of_the_committed_results():
    record = json.loads((ROOT / "benchmarks/results/zero_shot_sst2.json").read_text())
    page = (ROOT / "docs/encoders.md").read_text(encoding="utf-8")
    assert f"<!-- results:zero-shot-sst2 -->\n{table(record)}\n<!-- /results -->" in page
