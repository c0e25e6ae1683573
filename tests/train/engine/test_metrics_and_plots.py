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


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def test_curves_mark_the_best_checkpoint_and_do_not_zoom_on_noise(figures, tmp_path):
    evals = [{"step": s, "kind": "eval", "val_loss": [0.5], "val_f1": [0.94 + s / 1e6]} for s in (1, 2, 3)]
    plots.training_curves(evals, (0,), tmp_path, unit="nats", best=2, validation={"val_f1": "macro-F1"})
    loss, metric = figures[0].axes
    assert metric.get_ylabel() == "macro-F1"
    for axis, least in ((loss, 0.05), (metric, 0.1)):
        low, high = axis.get_ylim()
        assert high - low >= 0.999 * least
        assert axis.lines[-1].get_xdata() == [2, 2]


def test_a_single_evaluation_is_drawn_as_bars_and_gates_around_zero(figures, tmp_path):
    plots.learning_curves({"a": {8: [1.0, 3.0]}, "b": {8: [5.0]}}, tmp_path, title="", ylabel="")
    assert [bar.get_width() for bar in figures[0].axes[0].patches] == [2, 5]
    gates = {f"blocks.{i}.{name}": np.array([1.0, 3.0]) for i in range(2) for name in ("alpha", "tau")}
    plots.learned_parameters(gates, tmp_path)
    assert [axis.images[0].get_clim() for axis in figures[1].axes[:2]] == [(-3, 3)] * 2


def test_long_class_names_leave_room_for_the_matrix(figures, tmp_path):
    plots.confusion(np.eye(3), ["a", "b" * 99, "c"], tmp_path, title="")
    names = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert names == ["a", "b" * 23 + "…", "c"]
