"""The parts of fine-tuning by themselves: losses, scores, texts as tokens, TweetEval, rates by layer."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from jaxattn_train.data import tweeteval
from jaxattn_train.data.tables import Texts
from jaxattn_train.data.text_classification import LabelledTexts, load_files
from jaxattn_train.data.token_examples import token_examples
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.classify.config import parse as parse_classify
from jaxattn_train.tasks.finetune.config import FinetuneOptimizer, parse
from jaxattn_train.tasks.finetune.model import make_optimizer, rate_share
from jaxattn_train.tasks.shared.losses import balanced_weights, example_loss, example_losses, probabilities
from jaxattn_train.tasks.shared.scores import best_thresholds, confusion, predictions, scores
from tests.train.tiny_encoder import save_tiny_encoder

RNG = np.random.default_rng(0)


def test_losses_are_the_negative_log_probabilities_they_say():
    logits, labels = RNG.normal(size=(5, 3)) * 3, np.array([0, 2, 1, 1, 2])
    weights = np.array([1.0, 2.0, 0.5])
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(chances[np.arange(5), labels])
    np.testing.assert_allclose(
        example_loss("softmax", jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5
    )
    got = example_loss("softmax", jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(got, weights[labels] * expected, rtol=1e-5)
    np.testing.assert_allclose(probabilities("softmax", logits), chances, rtol=1e-12)

    several, yes = RNG.integers(0, 2, (5, 3)), 1 / (1 + np.exp(-logits))
    each = -np.log(np.where(several == 1, yes, 1 - yes))
    got = example_loss("multilabel", jnp.asarray(logits), jnp.asarray(several))
    np.testing.assert_allclose(got, each.mean(1), rtol=1e-5)
    pairs = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    got = example_loss("multilabel", jnp.asarray(logits), jnp.asarray(several), jnp.asarray(pairs))
    np.testing.assert_allclose(got, (each * pairs[several, np.arange(3)]).mean(1), rtol=1e-5)

    got = example_loss(
        "binary", jnp.asarray(logits[:, :1]), jnp.asarray(several[:, 0]), jnp.array([2.0, 3.0])
    )
    np.testing.assert_allclose(got, each[:, 0] * np.array([2.0, 3.0])[several[:, 0]], rtol=1e-5)
    np.testing.assert_allclose(
        probabilities("binary", logits[:, :1]), np.stack([1 - yes[:, 0], yes[:, 0]], 1)
    )
    # Large logits overflow nowhere.
    huge = np.array([[1e4, -1e4]])
    assert np.isfinite(probabilities("multilabel", huge)).all()
    assert np.isfinite(example_loss("multilabel", jnp.asarray(huge), jnp.array([[0, 1]]))).all()
    gradient = jax.grad(lambda x: example_loss("binary", x, jnp.array([0])).sum())(jnp.array([[1e4]]))
    np.testing.assert_allclose(gradient, 1.0)


def test_balanced_weights_make_classes_count_alike():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights("softmax", labels, 3)
    np.testing.assert_allclose(np.bincount(labels) * weights, 10 / 3)
    np.testing.assert_allclose(balanced_weights("binary", np.array([0, 0, 0, 1]), 2), [4 / 6, 2])
    several = np.array([[1, 0], [1, 1], [1, 0], [0, 0]])
    # One text in four lacks the first label: 4 / (2 · 1).
    np.testing.assert_allclose(balanced_weights("multilabel", several, 2), [[2, 2 / 3], [2 / 3, 2]])
    assert np.isfinite(balanced_weights("multilabel", np.ones((3, 1), int), 1)).all()


def test_scores_are_those_of_scikit_learn():
    logits, labels = RNG.normal(size=(2, 40, 3)), RNG.integers(0, 3, 40)
    found = scores("softmax", logits, labels)
    for seed in range(2):
        predicted = logits[seed].argmax(-1)
        assert found["f1"][seed] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
        assert found["weighted_f1"][seed] == pytest.approx(
            metrics.f1_score(labels, predicted, average="weighted")
        )
        assert found["accuracy"][seed] == pytest.approx((predicted == labels).mean())
        chances = probabilities("softmax", logits[seed])
        assert found["auc"][seed] == pytest.approx(metrics.roc_auc_score(labels, chances, multi_class="ovr"))
    assert found["loss"] == pytest.approx(example_losses("softmax", logits, labels).mean(axis=1).tolist())

    yes = RNG.integers(0, 2, 40)
    found = scores("binary", logits[..., :1], yes)
    assert found["auc"][0] == pytest.approx(metrics.roc_auc_score(yes, logits[0, :, 0]))
    assert found["f1"][0] == pytest.approx(metrics.f1_score(yes, logits[0, :, 0] > 0, average="macro"))

    several = RNG.integers(0, 2, (40, 3))
    found = scores("multilabel", logits, several)
    assert found["f1"][1] == pytest.approx(metrics.f1_score(several, logits[1] > 0, average="macro"))
    assert found["accuracy"][1] == pytest.approx(((logits[1] > 0) == several).all(axis=1).mean())
    counts = confusion(
        "multilabel", predictions("multilabel", probabilities("multilabel", logits)), several, 3
    )
    expected = metrics.multilabel_confusion_matrix(several, logits[1] > 0).reshape(3, 4)
    np.testing.assert_array_equal(counts[1], expected)


def test_an_auc_that_does_not_exist_is_left_out():
    assert "auc" not in scores("softmax", np.zeros((1, 4, 2)), np.zeros(4, int))
    perfect = scores("softmax", np.array([[[5.0, 0, 0], [0, 5.0, 0]]]), np.array([0, 1]))
    assert "auc" not in perfect
    assert perfect["f1"] == [1.0]  # the third class neither occurs nor is predicted


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from jaxattn.models import TextEncoder

    return TextEncoder.from_pretrained(save_tiny_encoder(tmp_path_factory.mktemp("tiny")))


def _data(texts, labels, validation_label="a"):
    ids = [str(i) for i in range(len(texts))]
    return LabelledTexts("toy", Texts(texts, labels, ids), Texts(["w1"], [validation_label], ["0"]), None)


def test_texts_become_token_ids_and_cut_ones_are_counted(encoder):
    texts = ["w1 w2 w3 w4 w5 w6", "great", "w1 w2 w3 w4", "w1 w2 w3 w4 w5"]
    data = token_examples(_data(texts, ["a", "b", "a", "b"]), encoder, max_length=6)
    assert data.train.lengths.tolist() == [6, 3, 6, 6]
    words = encoder.tokenize(["w1 w2 w3 w4"])[0][0].tolist()
    assert data.train.padded(np.array([2]), 6).tokens.tolist() == [words]
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    # Two do not fit; the third fills the limit exactly and is not cut.
    assert any("cut at 6 tokens (--max-length): 2 train, 0 validation" in note for note in data.notes)
    assert data.record == {"labels": ["a", "b"], "classes": ("a", "b"), "max_length": 6, "loss": "softmax"}


def test_texts_with_several_labels(encoder):
    data = token_examples(
        _data(["w1", "w2", "w3"], ["a; b", "", "c"], "c;a"),
        encoder,
        max_length=8,
        loss="multilabel",
        label_separator=";",
    )
    assert data.classes == ("a", "b", "c")
    assert data.train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert data.validation.labels.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("texts", "labels", "other", "options", "message"),
    [
        (["w1", " "], ["a", "b"], "a", {}, "the train text 1 is empty; remove it"),
        (
            ["w1", "w2"],
            ["a", "b"],
            "c",
            {},
            "the validation text 0 has the label 'c', which no training text has",
        ),
        (["w1", "w2"], ["a", "a"], "a", {}, "at least 2 labels; they have 'a'"),
        (["w1", "w2"], ["a", "b"], "a,z", {"loss": "multilabel"}, "has the label 'z'"),
        (["w1", "w2", "w3"], ["a", "b", "c"], "a", {"loss": "binary"}, "exactly 2 labels for --loss binary"),
    ],
)
def test_texts_that_cannot_be_used_are_named(encoder, texts, labels, other, options, message):
    with pytest.raises(UserError, match=message):
        token_examples(_data(texts, labels, other), encoder, max_length=8, **options)


def test_tweeteval_is_read_and_checked(tmp_path, monkeypatch):
    files = {
        "mapping": "0\tno\n1\tyes",
        "train_text": "so it is\x85really\nfine , thanks \n",
        "train_labels": "1\n0\n",
        "val_text": "a\n",
        "val_labels": "0\n",
        "test_text": "b\n",
        "test_labels": "1\n",
    }
    folder = tmp_path / "tweeteval" / "irony"
    folder.mkdir(parents=True)
    known = {}
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        known[name] = dataclasses.replace(tweeteval.TWEETEVAL["irony"][name], sha256=sha256)
    original = tweeteval.TWEETEVAL["irony"]
    monkeypatch.setitem(tweeteval.TWEETEVAL, "irony", known)
    for path in (tmp_path, folder):
        data = tweeteval.load_tweeteval("irony", str(path))
        # A character that some programs take for the end of a line is not one.
        assert data.train == Texts(["so it is\x85really", "fine , thanks"], ["1", "0"], ["0", "1"])
        assert data.class_names == {"0": "no", "1": "yes"}
    monkeypatch.setitem(tweeteval.TWEETEVAL, "irony", original)
    with pytest.raises(UserError, match=r"is not mapping\.txt of TweetEval irony: SHA-256"):
        tweeteval.load_tweeteval("irony", str(tmp_path))


def test_pairs_of_tweets_have_the_labels_of_both(encoder, monkeypatch):
    part = Texts(["w1", "w2", "w2", "w2", "w3"], ["1", "0", "1", "1", "0"], list("abcde"))
    single = LabelledTexts("one", part, part, part, {"0": "anger", "1": "joy"})
    monkeypatch.setattr(tweeteval, "load_tweeteval", lambda task, path: single)
    pairs = tweeteval.load_emotion_pairs()
    assert pairs.train == pairs.test == Texts(["w1 w2", "w2 w2"], ["0,1", "1"], ["a+b", "c+d"])
    data = token_examples(pairs, encoder, max_length=8, loss="multilabel")
    assert (data.classes, data.test.labels.tolist()) == (("anger", "joy"), [[1, 1], [0, 1]])
    assert parse(["--preset", "emotion-pairs"]).data.separator == ","
    with pytest.raises(UserError, match="--dataset emotion-pairs is for --loss multilabel"):
        parse(["--dataset", "emotion-pairs"])


def test_few_texts_need_no_flags():
    """120 rows: 108 to train on, 4 batches an epoch."""
    optimizer = parse([]).resolved(batches=4).optimizer
    assert (optimizer.steps, optimizer.warmup_steps) == (16, 2)


def test_layers_below_learn_slower_and_the_head_at_its_own_rate():
    config = FinetuneOptimizer(
        steps=10, warmup=0, lr=1e-2, head_lr=3e-2, layerwise_decay=0.5, weight_decay=0.0
    )
    names = ["embeddings.word", "relative.table", "blocks.0.x", "blocks.2.x", "norm.scale"]
    shares = {f"encoder.{name}": rate_share(f"encoder.{name}", config, 3) for name in names}
    assert list(shares.values()) == [0.125, 0.125, 0.25, 1.0, 1.0]
    optimizer = make_optimizer(config, 3, ())
    params = {name: jnp.ones((2, 2)) for name in [*shares, "head.out.kernel"]}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    # The first step of Adam has the size of the rate.
    for name, share in (shares | {"head.out.kernel": 3.0}).items():
        np.testing.assert_allclose(updates[name], -1e-2 * share, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("parse", [parse, parse_classify])
def test_a_training_file_alone_is_the_data_set(parse):
    assert parse(["--train-file", "a.csv"]).data.dataset == "files"
    assert parse(["--train-file=a.csv", "--test-file=b.csv"]).data.dataset == "files"
    with pytest.raises(UserError, match="--train-file is for --dataset files"):
        parse(["--train-file", "a.csv", "--dataset", "sst2"])
    with pytest.raises(UserError, match="--test-file is for --dataset files"):
        parse(["--test-file", "a.csv"])


def test_lists_of_labels_in_json_lines_are_several_labels(encoder, tmp_path):
    path = tmp_path / "a.jsonl"
    labels = [["joy", "love"], ["anger"], "love", []]
    path.write_text(
        "".join(json.dumps({"text": f"w{i}", "label": x}) + "\n" for i, x in enumerate(labels * 5))
    )
    columns = {"text_column": "text", "label_column": "label", "label_separator": ","}
    data = token_examples(
        load_files(str(path), str(path), None, **columns), encoder, max_length=8, loss="multilabel"
    )
    assert data.classes == ("anger", "joy", "love")
    assert data.train.labels[:4].tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_unusable_texts_and_labels_are_named_by_line(encoder, tmp_path):
    for name, rows in (
        ("train", ["w1,a", "w2,b"]),
        ("validation", ["w1,a", "w2,c", "w3,d"]),
        ("test", ["w1,a", " ,b"]),
    ):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    train, validation, test = (str(tmp_path / f"{name}.csv") for name in ("train", "validation", "test"))
    columns = {"text_column": "text", "label_column": "label"}
    with pytest.raises(UserError) as raised:
        token_examples(load_files(train, validation, None, **columns), encoder, max_length=8)
    first, second = str(raised.value).splitlines()
    assert first == f"{validation}:3 has the label 'c', which no training text has; those have 'a', 'b'."
    assert second == f"{validation}:4 has the label 'd', which no training text has."
    with pytest.raises(UserError, match=f"{test}:3: the text is empty"):
        token_examples(load_files(train, train, test, **columns), encoder, max_length=8)


def test_thresholds_maximise_the_f1_of_each_label():
    truth = RNG.integers(0, 2, (2, 40, 3))[0]
    chances = np.clip(0.3 * truth + RNG.uniform(size=(2, 40, 3)) * 0.5, 0, 1)
    thresholds = best_thresholds(chances, truth)
    assert thresholds.shape == (2, 3)
    for seed in range(2):
        for label in range(3):
            values = chances[seed, :, label]
            best = max(metrics.f1_score(truth[:, label], values > t) for t in [0.5, *(values - 1e-9)])
            said = predictions("multilabel", chances, thresholds)[seed, :, label]
            assert metrics.f1_score(truth[:, label], said) == pytest.approx(best)
    logits = np.log(chances) - np.log1p(-chances)
    numbers = scores("multilabel", logits, truth, thresholds)
    assert numbers["f1"][0] > scores("multilabel", logits, truth)["f1"][0]
    said = predictions("multilabel", chances, thresholds)[0]
    assert numbers["micro_f1"][0] == pytest.approx(metrics.f1_score(truth, said, average="micro"))
    assert best_thresholds(chances, np.zeros_like(truth)).tolist() == [[0.5] * 3] * 2


def test_options_of_labels_and_parts(tmp_path):
    config = parse(["--train-file", "a.csv", "--label-columns", "joy", "anger", "--test-share", "0.2"])
    assert (config.data.loss, config.data.separator, config.data.test_share) == ("multilabel", ",", 0.2)
    for words, message in (
        (
            "--train-file a.csv --label-columns joy anger --loss softmax",
            "--label-columns is for --loss multilabel",
        ),
        ("--train-file a.csv --label-columns joy", "--label-columns must be two or more names; got joy"),
        (
            "--train-file a.csv --test-file b.csv --test-share 0.1",
            "--test-share is for runs without --test-file",
        ),
        ("--train-file a.csv --test-share 1", "--test-share must be between 0 and 1; got 1.0"),
    ):
        with pytest.raises(UserError, match=message):
            parse(words.split())
    assert parse_classify(["--class-weights", "balanced"]).identity() != parse_classify([]).identity()
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"w{i},{'ab'[i % 2]}\n" for i in range(20)))
    options = {"text_column": "text", "label_column": "label", "test_share": 0.2}
    data = load_files(str(tmp_path / "a.csv"), None, None, **options)
    assert {name: len(part.texts) for name, part in data.parts().items()} == {
        "train": 14, "validation": 2, "test": 4
    }  # fmt: skip
    texts = [text for part in data.parts().values() for text in part.texts]
    assert sorted(texts) == sorted(f"w{i}" for i in range(20))
