import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from jaxattn_train.errors import UserError
from jaxattn_train.studies.sweep import report as lra_report
from jaxattn_train.studies.sweep import runs as sweep_runs
from jaxattn_train.studies.sweep.command import SweepOptions, main
from jaxattn_train.studies.sweep.ledger import Ledger, read
from jaxattn_train.studies.sweep.runs import SweepRun

TINY = shlex.split(
    "--sizes 64 16 16 --min-length 4 --max-length 16 --max-depth 3 --workers 1 --num-layers 1 --features 8 "
    "--head-features 8 --batch-size 16 --warmup 2 --steps 120 --eval-every 10 --log-every 10 --keep 20 --dropout 0.1"
)
TIMEOUT = 120
ROOT = Path(__file__).resolve().parents[3]


def _wait_for(condition, process):
    limit = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_ends_with_the_same_numbers(start, tmp_path):
    out, cache = tmp_path / "sweep", ["--data-cache", str(tmp_path / "cache")]
    flags = ["--task", "listops", "--attentions", "softmax", "--seeds", "2", "--out", str(out)]
    words = ["sweep", *flags, "--", *TINY, *cache]
    first, second = (SweepRun("softmax", seed).folder(out) for seed in (0, 1))

    process = start(*words)
    _wait_for(lambda: (second / "checkpoints" / "20").exists(), process)
    process.kill()  # -9: it can neither stop its run nor write anything
    process.communicate()
    lines = read(out)
    assert [line["seed"] for line in lines] == [0]
    assert not (second / "summary.json").exists(), "it was finished before it could be killed"
    begun = (first / "config.json").stat().st_mtime_ns
    # Half of a line, as a crash of the machine could leave it.
    with (out / "results.jsonl").open("a") as file:
        file.write('{"attention": "soft')

    process = start(*words)
    text = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, text
    assert "1 of 2 runs have ended already" in text
    log = (out / "logs" / "softmax-seed1.txt").read_text()
    assert "resuming after step" in log
    assert (first / "config.json").stat().st_mtime_ns == begun
    after = read(out)
    assert after[0] == lines[0]
    assert [(line["attention"], line["seed"], line["status"]) for line in after] == [
        ("softmax", 0, "finished"),
        ("softmax", 1, "finished"),
    ]
    # The run that was under way has the numbers of one that never stopped.
    alone = tmp_path / "alone"
    process = start("lra", "--task", "listops", *TINY, *cache, "--seed", "1", "--out", alone)
    text = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, text
    straight = json.loads((alone / "summary.json").read_text())
    for name in ("accuracy", "loss", "val_accuracy", "best_step"):
        assert straight[name] == after[1][name], name


def _summary(command):
    flags = dict(zip(command[4::2], command[5::2], strict=False))
    seed, attention = int(flags["--seed"]), flags["--attention"]
    accuracy = 0.5 + 0.01 * seed + 0.1 * ("oprf" in attention)
    numbers = {"mean": accuracy, "spread": None, "per_seed": [accuracy]}
    return flags["--out"], {
        **dict.fromkeys(sweep_runs.KEPT, 1),
        **dict.fromkeys(("accuracy", "loss", "val_accuracy"), numbers),
        "evaluations": [
            {"step": step, "val_loss": 1.0, "val_accuracy": accuracy * step / 10} for step in (5, 10)
        ],
        "measured_on": "test",
        "seconds": 61.0,
        "seconds_per_step": 0.25,
        "peak_memory": {"bytes": 2**30, "of": "process"},
        "device": {"kind": "cpu"},
        "versions": {"jax": "0"},
        "data": {"examples": {"train": 100, "test": 50}, "notes": ["50 for test, of which 16.4% are '9'"]},
        "config": {
            "task": "listops",
            "preset": "quick",
            "model": {
                **{"attention": attention, "num_layers": 2, "features": 64, "num_heads": 2},
                **{"positions": "rotary", "pooling": "max"},
            },
            "optimizer": {"steps": 10, "batch_size": 4, "lr": 1e-3, "stratify": True},
            "data": {"max_length": 128, "workers": seed},
        },
    }


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs that end at once, some of them badly; what was started, and how each attention ends."""

    class Runs:
        def __init__(self):
            self.started, self.codes = [], {}
            self.flags = ["--task", "listops", "--out", str(tmp_path / "sweep")]

    found = Runs()

    class Process:
        def __init__(self, command, *, stdout, env, **_):
            self.out, summary = _summary(command)
            self.returncode = found.codes.get(summary["config"]["model"]["attention"], 0)
            name = os.path.basename(self.out)
            found.started.append((name, env.get("CUDA_VISIBLE_DEVICES")))
            if self.returncode == "until asked":
                os.kill(os.getpid(), signal.SIGINT)
                self.returncode = None
            elif self.returncode:
                stdout.write(b"Traceback\nerror: it broke\n")
            else:
                os.makedirs(self.out, exist_ok=True)
                with open(f"{self.out}/summary.json", "w") as file:
                    json.dump(summary, file)

        def poll(self):
            return self.returncode

        def send_signal(self, number):
            self.returncode = 128 + number

    monkeypatch.setattr(sweep_runs.subprocess, "Popen", Process)
    monkeypatch.setattr("jaxattn_train.tasks.lra.command.load_data", lambda config: None)
    return found


PAIRS = shlex.split("--components oprf posrf --weights orf sorf --attentions softmax tree:64x16 --seeds 2")


def test_failed_runs_are_recorded_and_tried_again_only_on_request(runs, tmp_path, capsys):
    runs.codes["tree:64x16"] = 1
    assert main([*PAIRS, *runs.flags]) == 1
    assert len(runs.started) == 12
    assert "tree:64x16, seed 0: failed with code 1: error: it broke" in capsys.readouterr().out
    runs.started.clear()
    assert main([*PAIRS, *runs.flags]) == 1
    assert "failed before: tree:64x16, seed 1" in capsys.readouterr().out
    assert not runs.started
    runs.codes.clear()
    assert main([*PAIRS, *runs.flags, "--retry-failed"]) == 0
    assert [name for name, _ in runs.started] == ["tree-64x16-seed0", "tree-64x16-seed1"]
    # Attentions and seeds may be added; finished runs stay.
    runs.started.clear()
    assert main([*PAIRS, *runs.flags, "--seeds", "3"]) == 0
    assert len(runs.started) == 6
    assert all(name.endswith("seed2") for name, _ in runs.started)


def test_an_interrupt_lets_the_run_save_and_starts_no_other(runs, tmp_path, capsys):
    runs.codes["tree:64x16"] = "until asked"
    assert main([*PAIRS, *runs.flags]) == 130
    assert len(runs.started) == 2
    assert "stopped; the same command continues" in capsys.readouterr().out
    assert [line["attention"] for line in read(tmp_path / "sweep")] == ["softmax"]
    runs.codes.clear()
    assert main([*PAIRS, *runs.flags]) == 0
    assert len(read(tmp_path / "sweep")) == 12


def test_several_devices_have_a_process_each(runs):
    assert main([*PAIRS, *runs.flags, "--devices", "0", "3"]) == 0
    assert {device for _, device in runs.started} == {"0", "3"}


def test_the_report_has_every_attention_beside_the_published_figures(runs, tmp_path, monkeypatch):
    runs.codes["tree:64x16"] = 1
    main([*PAIRS, *runs.flags])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:lra -->\nold\n<!-- /results -->\nafter\n")
    results = tmp_path / "sweep" / "results.jsonl"
    assert lra_report.main(["--sweep", str(results), "--tables", str(page)]) == 0
    text = page.read_text()
    assert "| `softmax` | 2 | 50.50 ± 0.71 | 38.49 ± 0.80 | 0.250 | 1:01 | 1,024 MiB (process) |" in text
    assert "| `features:oprf-orf:128` | 2 | 60.50 ± 0.71 | 38.05 ± 0.78 |" in text
    assert "Failed: `tree:64x16` seed 0: error: it broke" in text
    assert "not comparable" in text and "16.4% are '9'; max length 128. cpu" in text
    assert "rotary positions, max pooling; 10 steps of 4, stratified, rate 0.001" in text
    assert text.endswith("after\n")
    assert "old" not in text
    assert (tmp_path / "sweep" / "report.md").exists()
    for name in ("heatmap-1-listops-quick-128.png", "curves-1-listops-quick.png"):
        assert (tmp_path / "sweep" / name).read_bytes().startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(lra_report.plots, "learning_curves", lambda lines, *_, **__: drawn.append(lines))
    lra_report.main(["--sweep", str(results)])
    assert drawn[0]["softmax"] == {5: pytest.approx([25, 25.5]), 10: pytest.approx([50, 51])}
    with pytest.raises(UserError, match="softmax with seed 0 twice"):
        lra_report.main(["--sweep", str(results), str(results)])
    with pytest.raises(UserError, match=r"nowhere.jsonl does not exist"):
        lra_report.main(["--sweep", "nowhere.jsonl"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "needs --components and --weights, or --attentions"),
        ("--components oprf", "--components and --weights belong together"),
        ("--components foo --weights orf", "--components must be of trigrf, posrf"),
        ("--components oprf --weights bar", "--weights must be of gaussian"),
        ("--attentions softmax sofmax", "'sofmax' is not known"),
        ("--attentions tree", "--attention must say the sizes of a tree"),
        ("--attentions softmax --seeds 0", "--seeds must be at least 1"),
        ("--components oprf --weights orf --num-features 0", "--num-features must be at least 1; got 0"),
        ("--attentions softmax --devices 1 1", "--devices must differ from each other; got 1 1"),
        ("--attentions softmax -- --seed 3", "--seed is the sweep's own"),
        ("--attentions softmax -- --lr -1", "--lr and --clip must be positive"),
    ],
)
def test_mistakes_show_before_anything_runs(runs, tmp_path, flags, message):
    with pytest.raises(UserError) as raised:
        main([*runs.flags, *flags.split()])
    assert message in str(raised.value)
    assert not runs.started
    assert not (tmp_path / "sweep").exists()


def test_a_folder_belongs_to_one_sweep_at_a_time(monkeypatch, tmp_path):
    settings = {"task": "listops", "preset": "quick", "flags": []}
    ledger = Ledger(tmp_path, settings)
    monkeypatch.setattr("jaxattn_train.studies.sweep.ledger.PATIENCE", 0.0)
    with pytest.raises(UserError, match="another sweep is running"):
        Ledger(tmp_path, settings)
    ledger.add({"attention": "softmax", "seed": 0, "status": "failed"})
    ledger.close()
    with pytest.raises(UserError, match="other settings: flags"):
        Ledger(tmp_path, settings | {"flags": ["--lr", "1"]})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match=r"results.jsonl, line 2, is no line of a sweep"):
        read(tmp_path)


def test_all_pairs():
    assert len(SweepOptions(components=("all",), weights=("all",)).spellings()) == 180
    assert SweepOptions(attentions=("softmax", "softmax")).spellings() == ["softmax"]


def test_the_documented_tables_are_those_of_the_committed_results(tmp_path):
    files = sorted(map(str, (ROOT / "benchmarks/results").glob("lra_*.jsonl")))
    assert len(files) == 3
    lra_report.main(["--sweep", *files, "--out", str(tmp_path)])
    table = (tmp_path / "report.md").read_text().split("\n\n![")[0].strip()
    assert table in (ROOT / "docs/lra.md").read_text()
