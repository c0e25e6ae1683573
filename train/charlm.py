"""`python -m train charlm`: trains a character language model. Reads from top to bottom."""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train import loop, resume, sharding
from train.checkpoints import FOLDER, Checkpoints
from train.config import CharLMConfig, parse
from train.data.corpora import Corpus, encode, load_corpus
from train.data.windows import SeedStreams, consecutive_windows
from train.errors import TrainingFailed
from train.evaluate import make_evaluate
from train.functional import Functional, compute_dtype, language_model
from train.interrupt import StopRequest
from train.metrics import LN2, MetricsLog, Progress, clock, mean, spread
from train.report import finish


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    words = [word for word in argv if word != "--overwrite"]
    return train(config, command=shlex.join(["python", "-m", "train", "charlm", *words]))


def train(config: CharLMConfig, *, command: str = "the same command") -> int:
    """Trains, or goes on training, until the last step, a signal, or a number that is not finite.

    Args:
        config: everything about the run.
        command: what to tell the user to type to resume.

    Returns:
        0 when finished, 130 or 143 when a signal stopped it (a checkpoint is then on disk).

    Raises:
        UserError: something in the configuration or the files is not usable.
        TrainingFailed: not finite, or no checkpoint can be read.
    """
    # 1. The pieces: text, model, devices, optimiser. All complaints come here, before anything is written.
    sharding.initialize_distributed(config.run.distributed)
    total, seeds = config.optimizer.steps, config.seeds()
    batch_size, context = config.optimizer.batch_size, config.model.context_length
    corpus = load_corpus(config.data, context_length=context)
    encode(config.evaluation.prompt or "", corpus.vocabulary)
    model = language_model(config.model, len(corpus.vocabulary))
    mesh = sharding.make_mesh(config.run.fsdp, batch_size=batch_size, accumulate=config.optimizer.accumulate)
    model = sharding.gather_before_use(model, mesh)
    optimizer = loop.make_optimizer(config.optimizer)
    init = loop.make_init(model, optimizer, seeds)
    shapes = jax.eval_shape(init)
    specs = sharding.param_specs(model.axes, model.shapes, config.run.fsdp)
    shardings = sharding.tree_shardings(shapes, specs, mesh)
    streams = SeedStreams(
        corpus.train, seeds=seeds, context_length=context, batch_size=batch_size,
        rows=sharding.local_rows(mesh, batch_size),
    )  # fmt: skip
    leader = jax.process_index() == 0

    # 2. The folder: start, or go on from its newest checkpoint.
    out = Path(config.out())
    if config.run.overwrite:
        resume.clear(out)
    out.mkdir(parents=True, exist_ok=True)
    store = Checkpoints(out / FOLDER, keep=config.run.keep)
    identity = config.identity() | {"corpus": corpus.sha256}
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    record: dict[str, Any] = {"history": [], "seconds": 0.0}
    warnings: list[str] = []
    restored = resume.restore(store, target, identity, step=config.run.resume_step)
    if restored is None:
        state = jax.jit(init, out_shardings=shardings)()
    else:
        state, record, warnings = restored
        streams.set_state(record["data"])
    start = int(np.asarray(state.step)[0])
    log = MetricsLog(out, record["history"], seeds=seeds, enabled=leader)
    progress = Progress(total, start, enabled=leader)
    for line in [*warnings, *describe(config, corpus, model, mesh, out)]:
        progress.say(line)
    if restored is not None:
        progress.say(
            f"resuming after step {start}" if start < total else f"all {total} steps are done already"
        )
    if leader:
        (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")

    # 3. Compile before the clock starts.
    train_step, mode = compile_step(
        config, model, optimizer, target, shardings, mesh, streams, skip=start == total
    )
    evaluate = make_evaluate(model, mesh, seeds=len(seeds), batch_size=batch_size, mode=mode)
    windows = consecutive_windows(
        corpus.validation, context_length=context, count=config.evaluation.eval_windows
    )
    schedule = loop.learning_rate(config.optimizer)
    began, before = time.monotonic(), record["seconds"]

    def seconds() -> float:
        return before + time.monotonic() - began

    def save(step: int, val_loss: float | None = None) -> None:
        fail_if_not_finite(state.failed, store, seeds)
        record = {
            "config": dataclasses.asdict(config),
            "identity": identity,
            "seeds": list(seeds),
            "vocabulary": corpus.vocabulary,
            "data": streams.get_state(),
            "history": log.history,
            "seconds": seconds(),
        }
        store.save(step, state, record, val_loss)

    # 4. The loop. Metrics stay on the device until the next step is under way, so that logging never makes it wait.
    pending: list[loop.StepMetrics] = []
    ready: tuple[int, list[loop.StepMetrics]] | None = None
    mark = time.monotonic()
    step = start
    with StopRequest() as stop:
        try:
            while step < total:
                state, metrics = train_step(state, sharding.put_batch(mesh, next(streams), batch_size))
                step += 1
                pending.append(metrics)
                sharding.settle(metrics)
                if step % config.evaluation.log_every == 0 or step == total:
                    ready, pending = (step, pending), []
                evaluating = step % config.evaluation.eval_every == 0 or step == total
                stopping = (jax.process_count() == 1 or ready is not None) and stop.agreed()
                if ready is not None and (ready[0] < step or evaluating or stopping):
                    fail_if_not_finite(ready[1][-1].failed, store, seeds)
                    losses, norms = (np.mean([np.asarray(m[i]) for m in ready[1]], axis=0) for i in (0, 1))
                    now = time.monotonic()
                    rate = len(ready[1]) * len(seeds) * batch_size * context / (now - mark)
                    mark = now
                    entry = {
                        "step": ready[0],
                        "kind": "train",
                        "loss": losses.tolist(),
                        "grad_norm": norms.tolist(),
                        "learning_rate": float(schedule(ready[0] - 1)),
                        "tokens_per_second": rate,
                    }
                    log.write(entry)
                    progress.train(entry, (seconds() - before) / (step - start) * (total - step))
                    ready = None
                if evaluating:
                    fail_if_not_finite(state.failed, store, seeds)
                    val = evaluate(state.params, windows)
                    entry = {
                        "step": step,
                        "kind": "eval",
                        "val_loss": val,
                        "val_bits_per_character": [loss / LN2 for loss in val],
                    }
                    log.write(entry)
                    progress.say(f"step {step}: validation loss {over_seeds(val)} nats per character")
                    save(step, mean(val))
                    mark = time.monotonic()
                elif stopping:
                    save(step)
                if stopping and step < total:
                    store.wait()
                    progress.say(f"stopped after step {step}; saved {store.folder / str(step)}")
                    progress.say(f"to go on: {command}")
                    return stop.exit_code or 1
            store.wait()
        finally:
            # On every way out: what is being written gets written.
            progress.close()
            log.close()
            store.wait()

    # 5. The report.
    took = seconds() if start < total else before
    summary = finish(
        config,
        corpus,
        model,
        mesh,
        state.params,
        log.history,
        evaluate,
        seconds=took,
        out=out,
        say=progress.say,
    )
    store.close()
    final = summary["val_loss"]["per_seed"]
    progress.say(
        f"done: validation loss {over_seeds(final)} nats ({mean(final) / LN2:.3f} bits) per character after {total} "
        f"steps, {clock(took)}"
    )
    if "val_loss_prefix" in summary:
        whole, prefix = (
            over_seeds(summary[name]["per_seed"]) for name in ("val_loss_whole", "val_loss_prefix")
        )
        progress.say(f"on {summary['prefix_windows']} windows: {whole} whole, {prefix} prefix by prefix")
    progress.say(f"files: {', '.join(sorted(p.name for p in out.iterdir()))} in {out}")
    progress.say(f"more text: python -m train sample --checkpoint {shlex.quote(str(out))}")
    return 0


def compile_step(
    config: CharLMConfig,
    model: Functional,
    optimizer: Any,
    target: loop.TrainState,
    shardings: loop.TrainState,
    mesh: Mesh,
    streams: SeedStreams,
    *,
    skip: bool,
) -> tuple[Callable[..., Any], str]:
    """Compiles the training step ahead of time and settles what --seed-mode auto means.

    On accelerators auto is vmap unless its step needs more memory than there is. On CPU it is sequential: a step of
    three seeds at d 128 takes 1.4 times as long under vmap there.
    """
    seeds, batch_size = config.seeds(), config.optimizer.batch_size
    shape = (len(seeds), batch_size, config.model.context_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.batch_sharding(mesh))

    def compiled(mode: str) -> Any:
        step = loop.make_train_step(
            model, optimizer, seeds=seeds, accumulate=config.optimizer.accumulate, mode=mode
        )
        outputs = (shardings, NamedSharding(mesh, PartitionSpec()))
        return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(target, tokens).compile()

    mode = config.run.seed_mode
    if mode == "auto":
        mode = "sequential" if jax.default_backend() == "cpu" else "vmap"
    if skip:
        return lambda *_: None, mode
    step = compiled(mode)
    if config.run.seed_mode == "auto" and mode == "vmap" and len(seeds) > 1 and not fits(step):
        mode = "sequential"
        step = compiled(mode)
    return step, mode


def fits(compiled: Any) -> bool:
    """Whether a compiled step needs less than nine tenths of the memory there is; True where nobody can say."""
    need = compiled.memory_analysis()
    if need is None:
        return True
    needed = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
    needed += need.temp_size_in_bytes
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or needed < 0.9 * limit


def fail_if_not_finite(failed: jax.Array, store: Checkpoints, seeds: Sequence[int]) -> None:
    """Stops the run once a loss, gradient or parameter was not finite.

    Raises:
        TrainingFailed: naming the step and the last good checkpoint.
    """
    steps = np.asarray(failed)
    if (steps == loop.NEVER).all():
        return
    worst = int(np.where(steps == loop.NEVER, np.iinfo(np.int32).max, steps).argmin())
    store.wait()
    saved = store.steps()
    where = (
        f"the last good checkpoint is {store.folder / str(saved[-1])}"
        if saved
        else "no checkpoint was made yet"
    )
    raise TrainingFailed(
        f"the loss, the gradient or the parameters of seed {seeds[worst]} stopped being finite at step "
        f"{steps[worst] + 1}; {where}. A lower --lr or --clip or a longer --warmup (with another --out) may help."
    )


def describe(config: CharLMConfig, corpus: Corpus, model: Functional, mesh: Mesh, out: Path) -> list[str]:
    """What is being trained, in a few lines."""
    m, o = config.model, config.optimizer
    device = jax.devices()[0]
    dtype = np.dtype(compute_dtype(m.dtype)).name
    return [
        f"model    {m.attention}, positions {m.positions}: {m.num_layers} layers, {m.num_heads} heads, features "
        f"{m.features}, context {m.context_length}; {model.num_params():,} parameters",
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.validation):,} to "
        f"validate, {len(corpus.vocabulary)} distinct",
        f"training {o.steps} steps of {o.batch_size} windows, seeds {', '.join(map(str, config.seeds()))}",
        f"devices  {jax.device_count()} {device.platform} ({device.device_kind}), "
        + " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        + f", {dtype}",
        f"folder   {out}",
    ]


def over_seeds(values: Sequence[float]) -> str:
    """Mean, with the spread where there are several seeds."""
    between = spread(values)
    return f"{mean(values):.4f}" + ("" if between is None else f" ± {between:.4f}")
