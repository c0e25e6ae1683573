"""`jaxattn-train charlm`: trains a character language model. Reads from top to bottom."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxattn_train.cli.parsing import program, resume_command
from jaxattn_train.engine import resume, sharding
from jaxattn_train.engine.compilation import start_process
from jaxattn_train.engine.compile_for import choose_devices, report_step
from jaxattn_train.engine.description import describe_run
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.metrics import LN2, clock, mean, mean_and_spread
from jaxattn_train.engine.run import Checked, Run
from jaxattn_train.tasks.charlm.config import CharLMConfig, parse
from jaxattn_train.tasks.charlm.corpora import Corpus, encode, load_corpus
from jaxattn_train.tasks.charlm.evaluation import make_evaluate, next_token_loss
from jaxattn_train.tasks.charlm.model import language_model
from jaxattn_train.tasks.charlm.report import finish
from jaxattn_train.tasks.charlm.windows import SeedStreams, consecutive_windows


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    return train(parse(argv), command=resume_command("charlm", argv))


def train(config: CharLMConfig, *, command: str = "the same command") -> int:
    """Trains, or resumes, until the last step, a signal, or a non-finite number.

    Args:
        config: of the run.
        command: printed as the way to resume.

    Returns:
        0 when finished, 130 or 143 when a signal stopped it (after writing a checkpoint).

    Raises:
        UserError: something in the configuration or the files is not usable.
        TrainingFailed: non-finite numbers, or no readable checkpoint.
    """
    # 1. Text, model, devices, batches. Every error of the user's shows here, before anything is written.
    start_process(config.run)
    config, target, mesh = choose_devices(config)
    seeds, batch_size, context = config.seeds(), config.optimizer.batch_size, config.model.context_length
    # For devices that this machine lacks a text of any length will do.
    corpus = load_corpus(config.data, context_length=context if target is None else 0)
    encode(config.evaluation.prompt or "", corpus.vocabulary)
    identity = config.identity() | {"training text": f"sha256:{corpus.sha256}"}
    if target is None and resume.is_done(config, identity, closing):
        return 0
    model = language_model(config.model, len(corpus.vocabulary))
    model = sharding.partitioned(model)
    windows = jax.ShapeDtypeStruct((len(seeds), batch_size, context + 1), np.int32)
    if target is not None:
        return report_step(config, target, model, mesh, next_token_loss, [windows])
    streams = SeedStreams(
        corpus.train, seeds=seeds, context_length=context, batch_size=batch_size,
        rows=sharding.local_rows(mesh, batch_size),
    )  # fmt: skip

    # 2. The folder: a new run, or resume from its newest checkpoint.
    run = Run(
        config,
        model,
        mesh,
        streams,
        next_token_loss,
        identity=identity,
        keeps={"vocabulary": corpus.vocabulary},
    )
    run.begin(describe_run(config, mesh, run.out, describe(config, corpus, model), "windows"))

    # 3. Compile before the clock starts.
    train_step, mode = run.compile([windows])
    evaluate = make_evaluate(model, mesh, seeds=len(seeds), batch_size=batch_size, mode=mode)
    validation = consecutive_windows(
        corpus.validation, context_length=context, count=config.evaluation.eval_windows
    )

    def check(params: Params) -> Checked:
        val = evaluate(params, validation)
        entry = {"val_loss": val, "val_bits_per_character": [loss / LN2 for loss in val]}
        return Checked(entry, mean(val), f"validation loss {mean_and_spread(val)} nats per character")

    # 4. The loop.
    tokens = len(seeds) * batch_size * context
    stopped = run.train(train_step, check, tokens=lambda _: tokens, command=command)
    if stopped is not None:
        return stopped

    # 5. The report.
    say = run.progress.say
    summary = finish(config, corpus, run, evaluate)
    run.close()
    for line in closing(summary):
        say(line)
    say(f"files: {resume.listing(run.out)} in {run.out}")
    say(f"more text: {program()} sample --run {shlex.quote(str(run.out))}")
    return 0


def closing(summary: Mapping[str, Any]) -> list[str]:
    """What summary.json says at the end of a run."""
    final = summary["val_loss"]["per_seed"]
    lines = [
        f"done: validation loss {mean_and_spread(final)} nats ({mean(final) / LN2:.3f} bits) per character "
        f"after {summary['steps']} steps, {clock(summary['seconds'])}"
    ]
    if "val_loss_prefix" in summary:
        whole, prefix = (
            mean_and_spread(summary[name]["per_seed"]) for name in ("val_loss_whole", "val_loss_prefix")
        )
        lines.append(f"on {summary['prefix_windows']} windows: {whole} whole, {prefix} prefix by prefix")
    return lines


def describe(config: CharLMConfig, corpus: Corpus, model: Functional) -> list[str]:
    """The lines about model and text."""
    m = config.model
    return [
        f"model    {m.attention}, positions {m.positions}: {m.num_layers} layers, {m.num_heads} heads, features "
        f"{m.features}, context {m.context_length}; {model.num_params():,} parameters",
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.validation):,} to "
        f"validate, {len(corpus.vocabulary)} distinct",
    ]
