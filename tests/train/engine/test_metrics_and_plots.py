import io
import json

import numpy as np
import pytest
import rich.console

from jaxattn_train.engine import plots
from jaxattn_train.engine.metrics import MetricsLog, Progress, clock, mean, spread

HISTORY = [
    {"step": 1, "kind": "train", "loss": [3.0, 4.0], "tokens_per_second": 10.0},
    {"step": 2, "kind": "eval", "val_loss": [2.0, 2.5]},
]


def _records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_holds_no_record_twice(tmp_path):
    log = MetricsLog(tmp_path, [], seeds=(0, 1))
    for record in (*HISTORY, {"step": 3, "kind": "train", "loss": [1.0, 1.0]}):
        log.write(record)
    log.close()
    assert len(_records(tmp_path)) == 3
    resumed = MetricsLog(tmp_path, HISTORY, seeds=(0, 1))  # the checkpoint was made after step 2
    resumed.write({"step": 3, "kind": "train", "loss": [0.5, 0.5]})
    resumed.close()
    assert [record["step"] for record in _records(tmp_path)] == [1, 2, 3]
    assert _records(tmp_path)[-1]["loss"] == [0.5, 0.5]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_process_that_does_not_lead_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path, HISTORY, seeds=(0, 1), enabled=False)
    log.write({"step": 3, "kind": "train", "loss": [1.0, 1.0]})
    log.close()
    assert len(log.history) == 3
    assert not list(tmp_path.iterdir())


def test_progress_is_plain_lines_without_a_terminal(capsys):
    progress = Progress(100, 0)
    progress.train({"step": 10, "loss": [1.0, 2.0], "tokens_per_second": 1234.5}, 90)
    progress.say("[not markup]")
    progress.close()
    assert capsys.readouterr().out == "step 10/100: loss 1.500, 1,234 tokens/s, 1:30 left\n[not markup]\n"


def test_a_bar_shows_the_time_left_and_long_lines_stay_whole(monkeypatch):
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=70)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    progress = Progress(100, 0)
    progress.step(1, None)
    progress.step(2, 49)
    progress.say("to resume: python -m train charlm --out " + "a-long-folder/" * 9)
    progress.close()
    assert "step 2/100" in screen.getvalue()
    assert "0:49 left" in screen.getvalue()
    assert "a-long-folder/" * 9 in screen.getvalue()


def test_numbers_over_seeds():
    assert mean([1.0, 3.0]) == 2
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert spread([1.0]) is None
    assert clock(59.7) == "1:00"


def test_pictures_of_what_the_model_has(tmp_path):
    plots.training_curves(HISTORY, (0, 1), tmp_path / "loss.png", unit="nats per character")
    rng = np.random.default_rng(0)
    assert plots.learned_parameters({"embedding": rng.normal(size=(3, 4))}, tmp_path) == []
    gates = {
        f"decoder.blocks.{i}.mechanism.{w}": rng.normal(size=4) for i in range(11) for w in ("alpha", "tau")
    }
    morlet = {"positions.log_omega": rng.normal(size=8), "positions.log_sigma": rng.normal(size=8)}
    written = plots.learned_parameters({**gates, **morlet}, tmp_path)
    assert [path.name for path in written] == ["gates.png", "morlet.png"]
    for path in (*written, tmp_path / "loss.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_layers_are_drawn_in_their_order():
    values = {f"blocks.{i}.alpha": np.array([float(i)]) for i in (10, 2, 0)}
    assert [float(v[0]) for v in plots._named(values, "alpha")] == [0.0, 2.0, 10.0]
