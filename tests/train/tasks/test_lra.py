import dataclasses
import json
import shlex

import jax
import numpy as np
import pytest

from jaxattn_train.cli.commands import main
from jaxattn_train.data.batches import BatchStream
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.sequences import Sequences, Splits
from jaxattn_train.engine.loop import learning_rate
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra.command import lra_classifier, train
from jaxattn_train.tasks.lra.config import PRESETS, parse
from jaxattn_train.tasks.lra.data import as_classification
from jaxattn_train.tasks.lra.registry import LRA_TASKS
from jaxattn_train.tasks.shared import training as classification

SMALL = shlex.split(
    "--num-layers 1 --features 16 --head-features 8 --batch-size 16 --warmup 2 --lr 2e-2 --log-every 8 "
    "--seed-mode sequential"
)
LISTOPS = shlex.split(
    "--task listops --sizes 96 16 24 --min-length 4 --max-length 16 --max-depth 3 --workers 1 --steps 8 "
    "--eval-every 8"
)


def _pairs(count, seed):
    """Two byte strings of up to 20 tokens; the label says whether they are of the same kind."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 20, (count, 2))
    labels = rng.integers(0, 2, count)
    kinds = rng.integers(0, 2, count)
    codes = [
        rng.integers(0, 4, size) + 10 * (kind if tower == 0 else (kind + 1 - label) % 2)
        for pair, label, kind in zip(sizes, labels, kinds, strict=True)
        for tower, size in enumerate(pair)
    ]
    ends = np.cumsum(sizes.ravel())
    starts = (ends - sizes.ravel()).reshape(-1, 2)
    return Sequences(
        np.concatenate(codes).astype(np.uint8), starts, sizes.astype(np.int32), labels.astype(np.int32), 1
    )


@pytest.fixture(scope="module")
def pairs():
    return as_classification(
        LRA_TASKS["retrieval"], Splits(_pairs(320, 0), _pairs(32, 1), _pairs(64, 2), {"source": "made"}), 24
    )


@pytest.mark.slow
def test_listops_from_the_command_line(cli, tmp_path):
    out = tmp_path / "run"
    words = ["lra", *LISTOPS, *SMALL, "--data-cache", tmp_path / "cache", "--out", out]
    code, text, err = cli(*words, "--attention", "features:oprf-orf:8")
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["measured_on"] == "test"
    assert summary["data"]["examples"] == {"train": 96, "validation": 16, "test": 24}
    assert summary["data"]["classes"] == list("0123456789")
    assert summary["config"]["task"] == "listops"
    assert "compiled 1 shapes of batches, of 16 tokens a row" in text
    assert summary["peak_memory"]["bytes"] > 1e6
    assert summary["peak_memory"]["of"] == "process"
    assert summary["seconds_per_step"] > 0
    assert {"jax", "flax", "jaxattn", "python"} <= set(summary["versions"])
    # The same command again trains nothing; another mechanism does not share the folder.
    assert "all 8 steps are done already" in cli(*words, "--attention", "features:oprf-orf:8")[1]
    code, _, err = cli(*words, "--attention", "softmax")
    assert code == 2
    assert "holds a run with other settings: --attention" in err


@pytest.mark.slow
def test_two_towers_learn_whether_texts_are_of_one_kind(pairs, tmp_path):
    config = parse(
        ["--task", "retrieval", *SMALL, *shlex.split("--steps 60 --eval-every 30"), "--out", str(tmp_path)]
    )
    assert train(config, pairs) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"]["mean"] > 0.9
    assert summary["compiled_shapes"] == 2
    assert summary["data"]["classes"] == ["unrelated", "citing"]


def test_padding_a_batch_of_pairs_further_changes_no_logit(pairs):
    config = parse(["--task", "retrieval", *SMALL])
    buckets = Buckets(pairs.train.lengths, max_length=24, batch_size=4)
    batch = jax.tree.map(lambda x: x[0], next(BatchStream(pairs.train, None, buckets, seeds=(0,))))
    assert batch["tokens"].shape[:2] == (4, 2)
    assert batch["mask"].sum() == np.sum(batch["tokens"] > 0)
    model = lra_classifier(config, pairs, jax.tree.map(lambda x: x[None], batch))
    params = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply)
    before = apply(params, batch["tokens"], token_mask=batch["mask"])
    width = 24 - batch["tokens"].shape[2]
    further = [np.pad(batch[name], ((0, 0), (0, 0), (0, width))) for name in ("tokens", "mask")]
    np.testing.assert_allclose(apply(params, further[0], token_mask=further[1]), before, atol=1e-5)


@pytest.mark.parametrize("task", LRA_TASKS)
def test_the_paper_preset_is_the_published_set_up(task):
    config = parse(["--task", task, "--preset", "paper"])
    assert config == PRESETS[task]["paper"]
    published, o, m = LRA_TASKS[task].training, config.optimizer, config.model
    assert (o.batch_size, o.lr, o.warmup_steps, o.steps) == published
    assert (m.num_layers, m.features, m.num_heads, m.mlp_ratio * m.features, m.head_features) == (
        2,
        64,
        2,
        128,
        128,
    )
    assert (m.pooling, m.dropout, m.positions, o.weight_decay, o.beta2) == ("mean", 0.1, "learned", 0, 0.999)
    rate = learning_rate(o)
    half = o.warmup_steps + (o.steps - o.warmup_steps) // 2
    np.testing.assert_allclose(
        [rate(0), rate(o.warmup_steps), rate(half), rate(o.steps)], [0, o.lr, o.lr / 2, 0], atol=1e-8
    )
    data = config.data
    assert data.sizes is None
    assert data.max_length is None
    assert data.closing_brackets == (task != "listops")
    assert parse(["--task", task]).out() == f"runs/lra-{task}-quick-softmax"


@pytest.mark.parametrize("stratify", [True, False])
def test_stratify_says_how_batches_are_drawn(stratify, monkeypatch, tmp_path):
    class Seen(Exception):
        pass

    def watch(lengths, *, strata, **_):
        raise Seen(strata)

    monkeypatch.setattr(classification, "Buckets", watch)
    words = [*LISTOPS, *SMALL, "--out", str(tmp_path / "run"), "--data-cache", str(tmp_path)]
    with pytest.raises(Seen) as seen:
        main(["lra", *words, "--stratify" if stratify else "--no-stratify"])
    (strata,) = seen.value.args
    assert (strata is not None) == stratify
    assert not stratify or set(strata) <= set(range(10))


def test_files_have_the_paths_they_have():
    assert parse(["--task", "pathfinder"]).data.contour_length == 2
    for words in (["--data-path", "x"], ["--data-path=x"]):
        data = parse(["--task", "pathfinder", *words]).data
        assert (data.contour_length, data.distractors, data.sizes) == (None, None, (20_000, 500, 2000))


def test_the_rate_may_fall_as_a_cosine_too():
    config = parse(["--decay", "cosine"])
    line, cosine = (
        learning_rate(o) for o in (dataclasses.replace(config.optimizer, decay="linear"), config.optimizer)
    )
    assert float(cosine(300)) > float(line(300)) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--task poetry", "--task must be one of listops, text, retrieval, image, pathfinder; got 'poetry'"),
        ("--preset huge", "--preset must be one of quick, paper; got 'huge'"),
        ("--attention sofmax", "'sofmax' is not known"),
        ("--attention features:foo-orf:8", "component must be one of"),
        ("--attention features:oprf-bar:8", "weights must be one of"),
        ("--attention tree", "this task has no trees of its own; for 128 tokens tree:16x8; got"),
        ("--attention tree:given+gate", "--attention must say the sizes of a tree"),
        (
            "--data-path x",
            "--data-path is for the tasks that are read from files; got it with --task listops",
        ),
        ("--task text --max-depth 3", "--max-depth is for listops; got it with --task text"),
        ("--task text --min-length 3", "--min-length is for listops"),
        ("--task image --max-length 30", "--max-length is for listops, text and retrieval"),
        ("--task image --no-closing-brackets", "--no-closing-brackets is for listops"),
        (
            "--task pathfinder --data-path x --workers 2",
            "--workers is for listops and pathfinder, generated",
        ),
        ("--task text --data-seed 2", "--data-seed is for listops and pathfinder, generated"),
        ("--task text --data-cache x", "--data-cache is for listops and pathfinder"),
        ("--sizes 5 0 5", "--sizes must be at least 1 each; got 5 0 5"),
        ("--max-depth 1", "--max-depth must be 2 to 20; got 1"),
        ("--distractors 0", "--distractors is for pathfinder, generated"),
        ("--task pathfinder --contour-length 1", "--contour-length must be 2 to 14; got 1"),
        ("--min-length 200", "a length between the bounds"),
        ("--head-features 0", "--head-features must be at least 1; got 0"),
        ("--mlp-ratio 0", "--mlp-ratio must give the MLPs a width of at least 1; got 0.0"),
    ],
)
def test_impossible_flags_are_named(flags, message):
    with pytest.raises(UserError) as raised:
        parse(flags.split())
    assert message in str(raised.value)


def test_help_says_what_is_smaller(cli):
    code, text, _ = cli("lra", "--task", "text", "--help-all")
    assert code == 0
    for word in ("--task", "--closing-brackets", "--head-features", "--decay", "512", "pathfinder"):
        assert word in text
