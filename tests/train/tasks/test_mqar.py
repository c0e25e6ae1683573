"""`jaxattn-train mqar`: a run, its report, how it resumes, what is refused."""

import json
import shlex

import numpy as np
import pytest

from jaxattn_train.tasks.mqar.config import parse
from jaxattn_train.tasks.mqar.data import RecallStreams, held_out

TINY = shlex.split(
    "--attention linear:elu --num-layers 1 --features 8 --length 32 --num-keys 8 --pairs 2 8 --batch-size 8 "
    "--steps 6 --eval-every 3 --log-every 3 --eval-rows 4 --test-rows 4 --seeds 2"
)


@pytest.mark.slow
def test_leaves_a_report_and_finds_it_done(cli, tmp_path):
    words = ("mqar", *TINY, "--out", tmp_path / "run")
    code, text, _ = cli(*words)
    assert code == 0
    assert "done: test accuracy" in text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert list(summary["accuracy_by_pairs"]) == ["2", "8"]
    by_pairs = [part["per_seed"] for part in summary["accuracy_by_pairs"].values()]
    assert summary["accuracy"]["per_seed"] == pytest.approx(np.mean(by_pairs, axis=0))
    assert "all 6 steps are done already" in cli(*words)[1]
    code, _, err = cli(*words, "--pairs", "4")
    assert code == 2
    assert "pairs" in err


def test_batches_continue_where_they_were():
    config = parse([*TINY, "--shown-until", "0.5"])
    streams, again = (RecallStreams(config, slice(None)) for _ in range(2))
    batches = [next(streams) for _ in range(4)]
    again.set_state(3)
    np.testing.assert_array_equal(next(again)["tokens"], batches[3]["tokens"])
    asked = [(batch["targets"] >= 0).sum() for batch in batches]
    assert asked[0] > asked[3], "at first all rows show the answers, from half of the steps none"
    assert (batches[0]["tokens"][0] != batches[0]["tokens"][1]).any(), "each seed's data are its own"
    test = held_out(config, "test", 4)
    assert list(test) == [2, 8]
    assert (test[8]["targets"] >= 0).sum() == 4 * 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--pairs", "9"),
            "--pairs must be between 1 and 8, the smaller of --num-keys and --length / 4; got 9",
        ),
        (("--shown-until", "2"), "--shown-until must be between 0 and 1; got 2.0"),
        (("--attention", "tree"), "--attention must say the sizes of a tree"),
    ],
)
def test_mistakes_are_named(cli, flags, message):
    code, _, err = cli("mqar", *TINY, *flags)
    assert code == 2
    assert message in err
