"""`jaxattn-train pretrain`: continues masked language modelling on the user's own text."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxattn_train.cli.parsing import resume_command
from jaxattn_train.engine import plots, resume, sharding
from jaxattn_train.engine.compilation import start_process
from jaxattn_train.engine.compile_for import choose_devices, report_step
from jaxattn_train.engine.description import describe_run
from jaxattn_train.engine.functional import Params
from jaxattn_train.engine.metrics import clock, mean, mean_and_spread
from jaxattn_train.engine.provenance import over_seeds
from jaxattn_train.engine.run import Checked, Run
from jaxattn_train.tasks.charlm.evaluation import make_evaluate
from jaxattn_train.tasks.pretrain.config import PretrainConfig, parse
from jaxattn_train.tasks.pretrain.data import WindowStreams, load_windows, mask_tokens
from jaxattn_train.tasks.pretrain.model import load_masked, make_losses, masked_model

MODEL_FOLDER = "model"


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    return train(parse(argv), command=resume_command("pretrain", argv))


def train(config: PretrainConfig, *, command: str = "the same command") -> int:
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
    seeds, batch_size, length = config.seeds(), config.optimizer.batch_size, config.data.max_length
    pretrained = load_masked(config.model)
    encoder = pretrained.encoder
    windows = load_windows(config.data, encoder)
    identity = config.identity() | {"training text": f"sha256:{windows.sha256}"}
    if target is None and resume.is_done(config, identity, closing):
        return 0
    model, start = masked_model(pretrained, length)
    model = sharding.partitioned(model)
    mask_id, vocab_size = encoder.tokenizer.mask_id, encoder.config.vocab_size
    loss, row_losses = make_losses(
        functools.partial(mask_tokens, rate=config.data.mask_rate, mask_id=mask_id, vocab_size=vocab_size)
    )
    example = jax.ShapeDtypeStruct((len(seeds), batch_size, 2, length), np.int32)
    if target is not None:
        return report_step(config, target, model, mesh, loss, [example])
    rows = sharding.local_rows(mesh, batch_size)
    streams = WindowStreams(windows.train, seeds=seeds, batch_size=batch_size, rows=rows)

    # 2. The folder: a new run, or resume from its newest checkpoint.
    run = Run(config, model, mesh, streams, loss, identity=identity, keeps={}, start=start)
    lines = [
        f"model    {config.model.encoder}: {encoder.config.num_layers} layers, {encoder.config.hidden_size} wide, "
        f"{model.num_params():,} parameters",
        f"text     {len(windows.train):,} windows of {length} tokens to train on, {len(windows.validation):,} to "
        f"validate; {'whole words' if config.data.whole_words else 'tokens'} masked",
    ]
    run.begin(describe_run(config, mesh, run.out, lines, "windows"))

    # 3. Compile before the clock starts.
    train_step, mode = run.compile([example])
    evaluate = make_evaluate(
        model, mesh, seeds=len(seeds), batch_size=batch_size, mode=mode, row_losses=row_losses
    )

    def check(params: Params) -> Checked:
        val = evaluate(params, windows.validation)
        return Checked(
            {"val_loss": val}, mean(val), f"validation loss {mean_and_spread(val)} nats per masked token"
        )

    if not (run.is_done or run.resumed):
        run.progress.say(f"before: {check(run.state.params).line}")

    # 4. The loop.
    tokens = len(seeds) * batch_size * length
    stopped = run.train(train_step, check, tokens=lambda _: tokens, command=command)
    if stopped is not None:
        return stopped

    # 5. The report and the trained model, of the first seed.
    summary = run.summary(val_loss=over_seeds(evaluate(run.state.params, windows.validation)))
    first = sharding.first_seed(mesh, run.state.params)
    if jax.process_index() == 0:
        model.module(first).save_pretrained(run.out / MODEL_FOLDER)
        plots.training_curves(run.log.history, run.seeds, run.out / "loss.png", unit="nats per masked token")
    run.write(summary)
    run.close()
    for line in [*closing(summary), f"files: {resume.listing(run.out)} in {run.out}"]:
        run.progress.say(line)
    return 0


def closing(summary: Mapping[str, Any]) -> list[str]:
    """What summary.json says at the end of a run."""
    final = mean_and_spread(summary["val_loss"]["per_seed"])
    return [
        f"done: validation loss {final} nats per masked token after {summary['steps']} steps, "
        f"{clock(summary['seconds'])}",
        f"the encoder is in {MODEL_FOLDER}: for --encoder of finetune, and for transformers",
    ]
