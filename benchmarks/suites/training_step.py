"""Times whole training steps of the Long Range Arena's published set-up, all attentions in turns; one JSON file."""

import argparse
import functools
import gc
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from benchmarks.measure.allocator import keep_memory
from benchmarks.measure.memory import failure_status
from benchmarks.measure.timing import paired_ratio, summary, time_in_turns
from benchmarks.report.results import say, write
from benchmarks.suites.prepared import Prepared


def run(arguments: argparse.Namespace) -> int:
    """Measures length by length and writes the JSON after each, so that an interruption loses one length at most."""
    from benchmarks.measure.provenance import provenance

    keep_memory()
    document: dict[str, Any] = {
        "benchmark": "training-step",
        "complete": False,
        "provenance": provenance(),
        "settings": {"task": arguments.task, "batch": arguments.batch, "repeats": arguments.repeats},
        "rows": [],
    }
    for length in arguments.lengths:
        rows = measure_length(arguments, length)
        document["rows"] += rows
        for row in rows:
            ratio = row.get("ratios", {}).get("softmax")
            said = f"{row['median_s']:.3g} s, {ratio:.3f} of softmax" if ratio else row["status"]
            say(f"T {length} {row['attention']}: {said}")
        write(document, arguments.out)
    document["complete"] = True
    write(document, arguments.out)
    say(f"wrote {arguments.out}")
    return 0


def measure_length(arguments: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    """One row an attention."""
    makers = {
        name: functools.partial(training_step, arguments.task, name, length, arguments.batch)
        for name in arguments.attentions
    }
    rows = measure(makers, peer="softmax", repeats=arguments.repeats)
    return [
        {"attention": name, "length": length, "batch": arguments.batch} | row for name, row in rows.items()
    ]


def measure(
    makers: Mapping[str, Callable[[], Callable[[Any, int], None]]], *, peer: str, repeats: int
) -> dict[str, dict[str, Any]]:
    """Compiles steps, then times them in turns; what fails is recorded, not dropped.

    Args:
        makers: each makes the function of (anything, n) that takes n steps.
        peer: whose time the ratios are over.
        repeats: rounds.

    Returns:
        A row for each, by name.
    """
    rows, prepared = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            prepared[name] = Prepared(lambda: None, make())
        except Exception as error:
            rows[name] = _failed(f"{type(error).__name__}: {error}")
        else:
            rows[name] = {"status": "ok", "compile_s": time.perf_counter() - start}
    samples, errors = time_in_turns(prepared, repeats=repeats)
    for name, message in errors.items():
        rows[name] |= _failed(message)
    for name, own in samples.items():
        rows[name] |= summary(own) | {"samples_s": [float(f"{s:.4g}") for s in own]}
        rows[name]["ratios"] = {peer: paired_ratio(own, samples[peer])} if peer in samples else {}
    prepared.clear()
    gc.collect()
    return rows


def _failed(message: str) -> dict[str, Any]:
    return {"status": failure_status(message), "message": message[:300]}


def training_step(task: str, attention: str, length: int, batch: int) -> Callable[[Any, int], None]:
    """The compiled step of `python -m train lra --preset paper` on random tokens of full length.

    Args:
        task: of the Long Range Arena; it says the model, the optimiser and the number of ids.
        attention: as for --attention.
        length: tokens a sequence.
        batch: sequences.

    Returns:
        See `compiled_steps`.

    Raises:
        UserError: no such task or attention.
    """
    import numpy as np

    from train.engine import loop
    from train.tasks.lra.command import lra_classifier
    from train.tasks.lra.config import parse
    from train.tasks.lra.registry import LRA_TASKS

    config = parse(["--task", task, "--preset", "paper", "--attention", attention])
    this = LRA_TASKS[task]
    data: Any = SimpleNamespace(
        two_tower=this.two_tower,
        vocab_size=this.vocab_size,
        classes=range(this.num_classes),
        max_length=length,
    )
    draw = np.random.default_rng(0)
    shape = (1, batch, 2, length) if this.two_tower else (1, batch, length)
    rows: dict[str, Any] = {
        "tokens": draw.integers(1, this.vocab_size, shape).astype(np.int32),
        "mask": np.ones(shape, bool),
        "labels": draw.integers(this.num_classes, size=(1, batch)).astype(np.int32),
        "weights": np.ones((1, batch), np.float32),
        "tree": None,
    }
    model = lra_classifier(config, data, rows)
    return compiled_steps(model, loop.make_optimizer(config.optimizer), loop.class_loss, rows)


def compiled_steps(model: Any, optimizer: Any, loss: Any, batch: Any) -> Callable[[Any, int], None]:
    """The function of (anything, n) that takes n steps on one batch, one after the other, and waits for the last."""
    import jax

    from train.engine import loop

    state = jax.jit(loop.make_init(model, optimizer, (0,)))()
    step = loop.make_train_step(model, optimizer, seeds=(0,), loss=loss)
    compiled = jax.jit(step).lower(state, batch).compile()

    def steps(_: Any, times: int) -> None:
        now = state
        for _ in range(times):
            now, metrics = compiled(now, batch)
        jax.block_until_ready((now, metrics))

    return steps
