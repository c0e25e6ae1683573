"""`jaxattn-train mqar`: trains a model on multi-query associative recall. Reads from top to bottom."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxattn_train.cli.parsing import resume_command
from jaxattn_train.engine import resume, sharding
from jaxattn_train.engine.compilation import start_process
from jaxattn_train.engine.compile_for import choose_devices, report_step
from jaxattn_train.engine.description import describe_run
from jaxattn_train.engine.functional import Params
from jaxattn_train.engine.metrics import clock, mean, mean_and_spread
from jaxattn_train.engine.provenance import over_seeds
from jaxattn_train.engine.run import Checked, Run
from jaxattn_train.tasks.mqar.config import MQARConfig, parse
from jaxattn_train.tasks.mqar.data import RecallStreams, held_out
from jaxattn_train.tasks.mqar.evaluation import answer_loss, make_accuracy
from jaxattn_train.tasks.mqar.model import recall_model


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    return train(parse(argv), command=resume_command("mqar", argv))


def train(config: MQARConfig, *, command: str = "the same command") -> int:
    """Trains, or resumes, until the last step, a signal, or a non-finite number.

    Args:
        config: of the run.
        command: printed as the way to resume.

    Returns:
        0 when finished, 130 or 143 when a signal stopped it (after writing a checkpoint).

    Raises:
        UserError: something in the configuration is not usable.
        TrainingFailed: non-finite numbers, or no readable checkpoint.
    """
    # 1. Model, devices, batches.
    start_process(config.run)
    config, target, mesh = choose_devices(config)
    seeds, data, m = config.seeds(), config.data, config.model
    batch_size = config.optimizer.batch_size
    identity = config.identity() | dataclasses.asdict(data) | {"pairs": list(data.pairs)}
    if target is None and resume.is_done(config, identity, closing):
        return 0
    model = recall_model(config)
    model = sharding.partitioned(model)
    rows = jax.ShapeDtypeStruct((len(seeds), batch_size, data.length), np.int32)
    batch = {"tokens": rows, "targets": rows}
    if target is not None:
        return report_step(config, target, model, mesh, answer_loss, [batch])
    streams = RecallStreams(config, sharding.local_rows(mesh, batch_size))

    # 2. The folder: a new run, or resume from its newest checkpoint.
    run = Run(config, model, mesh, streams, answer_loss, identity=identity, keeps={}, metric="val_accuracy")
    lines = [
        f"model    {m.attention}, positions {m.positions}: {m.num_layers} layers, {m.num_heads} heads, features "
        f"{m.features}; {model.num_params():,} parameters",
        f"rows     {data.length} tokens, {', '.join(map(str, data.pairs))} pairs of {data.num_keys} keys and values",
    ]
    run.begin(describe_run(config, mesh, run.out, lines, "rows"))

    # 3. Compile before the clock starts.
    train_step, mode = run.compile([batch])
    measure = make_accuracy(model, mesh, seeds=len(seeds), mode=mode)
    validation = held_out(config, "validation", config.evaluation.eval_rows)

    def check(params: Params) -> Checked:
        found = measure(params, validation)
        overall = np.mean(list(found.values()), axis=0).tolist()
        entry = {"val_accuracy": overall} | {f"val_accuracy_{n}": values for n, values in found.items()}
        return Checked(entry, mean(overall), f"validation accuracy {_listed(found)}")

    # 4. The loop.
    tokens = len(seeds) * batch_size * data.length
    stopped = run.train(train_step, check, tokens=lambda _: tokens, command=command)
    if stopped is not None:
        return stopped

    # 5. The report, of the last parameters.
    found = measure(run.state.params, held_out(config, "test", config.evaluation.test_rows))
    summary = run.summary(
        accuracy=over_seeds(np.mean(list(found.values()), axis=0).tolist()),
        accuracy_by_pairs={str(pairs): over_seeds(values) for pairs, values in found.items()},
    )
    run.write(summary)
    run.close()
    for line in closing(summary):
        run.progress.say(line)
    return 0


def closing(summary: Mapping[str, Any]) -> list[str]:
    """What summary.json says at the end of a run."""
    found = {pairs: values["per_seed"] for pairs, values in summary["accuracy_by_pairs"].items()}
    return [f"done: test accuracy {_listed(found)}; {summary['steps']} steps, {clock(summary['seconds'])}"]


def _listed(accuracy: Mapping[Any, Sequence[float]]) -> str:
    return ", ".join(f"{mean_and_spread(values)} of {pairs} pairs" for pairs, values in accuracy.items())
