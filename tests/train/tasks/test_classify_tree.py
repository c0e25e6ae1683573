import json
import shlex

import jax
import numpy as np
import pytest

from jaxattn_train.data.batches import BatchStream, make_batch
from jaxattn_train.data.buckets import Buckets, Chosen, Kind
from jaxattn_train.data.trees import common_shapes
from jaxattn_train.tasks.classify.command import load_data
from jaxattn_train.tasks.classify.config import parse
from jaxattn_train.tasks.shared.model import sequence_classifier
from jaxattn_train.tasks.shared.training import make_trees

FLAGS = shlex.split(
    "--dataset files --attention tree --max-branching 4 --num-layers 1 --num-heads 2 --features 16 --batch-size 16 "
    "--max-length 32 --steps 16 --warmup 2 --lr 3e-2 --eval-every 8 --log-every 8"
)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    """Texts of one paragraph or two; what they are about stands in every sentence."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "train.csv"
    lines = ["text,label"]
    for i in range(96):
        sentences = [
            f"{' '.join(f'w{n}' for n in rng.integers(0, 20, 5))} {'awful' if i % 2 else 'great'}."
            for _ in range(rng.integers(1, 4))
        ]
        lines.append(f"{'<br /><br />'.join(sentences)},{i % 2}")
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_classifier_with_trees_learns_and_reports(cli, train_file, tmp_path):
    out = tmp_path / "run"
    code, text, err = cli("classify", *FLAGS, "--train-file", train_file, "--out", out)
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"]["mean"] > 0.9
    assert summary["data"]["trees"]
    assert summary["measured_on"] == "validation"  # there is no test file
    assert "compiled 2 shapes of batches, of 16, 32 tokens a row" in text


def test_neither_padding_nor_neighbours_change_a_logit(train_file):
    config = parse([*FLAGS, "--train-file", str(train_file)])
    data = load_data(config)
    shapes = common_shapes(data.lengths, data.max_length)
    buckets = Buckets(data.train.lengths, max_length=32, batch_size=4, kinds=shapes.kinds["train"])
    trees = make_trees(data, shapes)["train"]
    stream = BatchStream(data.train, trees, buckets, seeds=(0,))
    model = sequence_classifier(config, data, next(stream))
    params = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply)

    def logits(rows, kind):
        batch = make_batch(data.train, trees, Chosen(kind, np.array(rows)), 4)
        return apply(params, batch["tokens"], token_mask=batch["mask"], tree=batch["tree"])[: len(rows)]

    rows = np.flatnonzero(data.train.lengths <= 16)[:4]
    short = logits(rows, Kind(16))
    np.testing.assert_allclose(logits(rows, Kind(32)), short, atol=1e-5)
    np.testing.assert_allclose(logits(rows[:1], Kind(16)), short[:1], atol=1e-6)
    assert np.abs(short[0] - short[1]).max() > 1e-4
    # and the tree matters
    batch = make_batch(data.train, trees, Chosen(Kind(16), rows), 4)
    flat = jax.tree.map(lambda x: x[[1, 2, 3, 0]], batch["tree"])
    other = apply(params, batch["tokens"], token_mask=batch["mask"], tree=flat)
    assert np.abs(other - short).max() > 1e-5
