"""A training run, whatever the task: its folder, its state, and the loop from the first step to the last."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.engine import loop, resume, sharding
from jaxattn_train.engine.checkpoints import BEST, FOLDER, Checkpoints
from jaxattn_train.engine.compilation import TrainStep, compile_steps, plan_state
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.interrupt import StopRequest, Watchdog, leave
from jaxattn_train.engine.metrics import MetricsLog, Progress, mean
from jaxattn_train.engine.provenance import provenance
from jaxattn_train.errors import TrainingFailed


class Stream(Protocol):
    """An endless iterator of batches that can be checkpointed."""

    def __next__(self) -> Any:
        """The next batch of every seed, as host arrays."""

    def get_state(self) -> Any:
        """The position, JSON-able."""

    def set_state(self, state: Any) -> None:
        """Continues from a position."""


class Checked(NamedTuple):
    """The result of an evaluation."""

    entry: dict[str, Any]
    """For the metrics, without step and kind."""
    score: float
    """Decides which checkpoint is the best."""
    line: str
    """For the terminal."""


class _Record(NamedTuple):
    """The training metrics since the last record, still on the device."""

    step: int
    metrics: list[loop.StepMetrics]
    tokens: int


class Run:
    """A new run in a folder, or one resumed from its newest checkpoint.

    Args:
        config: of the run.
        model: the model as functions.
        mesh: devices.
        streams: batches; continued from the checkpoint's position.
        loss: what is minimised.
        identity: what must be equal in a checkpoint to resume it.
        keeps: what its record holds besides, JSON-able.
        metric: which number decides on the best checkpoint; see `checkpoints.BEST`.
        optimizer: names of the parameters that decay -> the update rule; None for `loop.make_optimizer`.
        start: initial values of parameters, such as pretrained ones; the others are drawn for each seed.
        patience: stop after so many evaluations without a better `metric`; None never does.

    Raises:
        UserError: the folder holds another run, another process is training in it, or --resume-step does not exist.
        TrainingFailed: no checkpoint can be read.
    """

    def __init__(
        self,
        config: TaskConfig,
        model: Functional,
        mesh: Mesh,
        streams: Stream,
        loss: loop.Loss,
        *,
        identity: Mapping[str, Any],
        keeps: Mapping[str, Any],
        metric: str = "val_loss",
        optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None,
        start: Params | None = None,
        patience: int | None = None,
    ):
        self.config, self.model, self.mesh, self.streams = config, model, mesh, streams
        self.seeds = config.seeds()
        self.total = config.optimizer.steps
        self._loss, self._keeps, self._identity = loss, dict(keeps), dict(identity)
        self.metric, self._patience = metric, patience
        self.plan = plan_state(config, model, mesh, optimizer)
        self.out = Path(config.out())
        self.out.mkdir(parents=True, exist_ok=True)
        resume.claim(self.out)
        if config.run.overwrite:
            resume.clear(self.out)
        self.store = Checkpoints(self.out / FOLDER, keep=config.run.keep, metric=metric)
        record: dict[str, Any] = {"history": [], "seconds": 0.0, "checking": 0.0}
        self.warnings: list[str] = []
        settings = dataclasses.asdict(config.data)
        restored = resume.restore(
            self.store, self.plan.target, self._identity, step=config.run.resume_step, data=settings
        )
        self.resumed = restored is not None
        if restored is None:
            self.state = self._with(jax.jit(self.plan.init, out_shardings=self.plan.shardings)(), start or {})
        else:
            self.state, record, self.warnings = restored
            streams.set_state(record["data"])
        self.start = int(np.asarray(self.state.step)[0])
        self.last = self.start
        """Updates so far."""
        self.seconds: float = record["seconds"]
        """Of training and evaluation, over all resumed parts."""
        self.checking: float = record["checking"]
        """Of these, the seconds of evaluation."""
        leader = jax.process_index() == 0
        self.log = MetricsLog(self.out, record["history"], seeds=self.seeds, enabled=leader)
        self.progress = Progress(self.total, self.start, enabled=leader)
        self.is_done = self.start == self.total or self._out_of_patience()
        """Whether nothing was left to train at the start."""

    def begin(self, description: Sequence[str]) -> None:
        """Prints what is being trained, and keeps the configuration in the folder."""
        for line in [*self.warnings, *description]:
            self.progress.say(line)
        if self.is_done:
            self.progress.say(f"all {self.start} steps are done already")
        elif self.resumed:
            self.progress.say(f"resuming after step {self.start}")
        if jax.process_index() == 0:
            text = json.dumps(dataclasses.asdict(self.config), indent=2)
            (self.out / "config.json").write_text(text + "\n")

    def compile(self, batches: Sequence[Any]) -> tuple[TrainStep, str]:
        """The training step for batches of these shapes, and the seed mode; see `compile_steps`."""
        return compile_steps(
            self.model,
            self.plan,
            self._loss,
            self.mesh,
            [] if self.is_done else batches,
            config=self.config.optimizer,
            seeds=self.seeds,
            seed_mode=self.config.run.seed_mode,
        )

    def train(
        self,
        train_step: TrainStep,
        check: Callable[[Any], Checked],
        *,
        tokens: Callable[[Any], int],
        command: str,
    ) -> int | None:
        """Trains until the last step, a signal, or a non-finite number.

        Args:
            train_step: from `compile`.
            check: evaluates parameters.
            tokens: how many a host batch of all processes holds, for the rate.
            command: printed as the way to resume.

        Returns:
            None when finished; 130 or 143 when a signal stopped it (after writing a checkpoint).

        Raises:
            TrainingFailed: non-finite numbers.
        """
        cadence = self.config.evaluation
        before, began = self.seconds, time.monotonic()
        self._began = self._mark = began
        # Metrics stay on the device until the next step is dispatched, so that logging never blocks it.
        pending: list[loop.StepMetrics] = []
        ready: _Record | None = None
        previous: Any = None
        seen = 0
        step, finished = self.start, self.is_done
        with StopRequest() as stop, Watchdog(self.config.run.stall_timeout) as watchdog:
            try:
                while not finished:
                    batch = next(self.streams)
                    self.state, metrics = train_step(self.state, batch)
                    watchdog.progress()
                    step += 1
                    self.last, finished = step, step == self.total
                    seen += tokens(batch)
                    pending.append(metrics)
                    sharding.settle(metrics)
                    # At most two steps are in flight: a signal is answered, and a step counted, after those.
                    jax.block_until_ready(previous)
                    previous = metrics
                    # The first step starts everything up, and says nothing about the others.
                    self.progress.step(step, self._seconds_left() if step > self.start + 1 else None)
                    if step % cadence.log_every == 0 or finished:
                        ready, pending, seen = _Record(step, pending, seen), [], 0
                    evaluating = step % cadence.eval_every == 0 or finished
                    stopping = stop.exit_code is not None or self.store.is_preempted(step)
                    if ready is not None and (ready.step < step or evaluating or stopping):
                        self._log_training(ready)
                        ready = None
                    self.seconds = before + time.monotonic() - began
                    if evaluating:
                        score = self._evaluate(check)
                        self.seconds = before + time.monotonic() - began
                        self._save(score)
                        if not finished and self._out_of_patience():
                            self.progress.say(
                                f"no better {self.metric} in {self._patience} evaluations: done"
                            )
                            finished = True
                        self._mark = time.monotonic()
                    elif stopping:
                        self._save()
                    if stopping and not finished:
                        self.store.wait()
                        self.progress.say(f"stopped after step {step}; saved {self.store.folder / str(step)}")
                        self.progress.say(f"to resume: {command}")
                        return stop.exit_code or 128 + signal.SIGTERM
            except jax.errors.JaxRuntimeError as error:
                if jax.process_count() == 1:
                    raise
                leave(f"another process has ended or cannot be reached ({str(error).splitlines()[0][:200]})")
            finally:
                # On every way out, errors included, pending checkpoints are completed.
                self.progress.close()
                self.log.close()
                self.store.wait()
        return None

    def close(self) -> None:
        """Closes the checkpoints of a finished run, and keeps of them what --best-only says."""
        if self.config.run.best_only:
            self.store.keep_best()
        else:
            self.store.close()

    def summary(self, **found: Any) -> dict[str, Any]:
        """What summary.json holds at the end of every run, with what was `found`."""
        return {
            "config": dataclasses.asdict(self.config),
            "identity": self._identity,
            "seeds": list(self.seeds),
            "steps": self.last,
            "parameters": self.model.num_params(),
            **found,
            "seconds": self.seconds,
            **provenance(self.mesh),
        }

    def write(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which says that the run is finished."""
        if jax.process_index() == 0:
            (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _log_training(self, record: _Record) -> None:
        self._fail_if_not_finite(record.metrics[-1].failed)
        losses, norms = (np.mean([np.asarray(m[i]) for m in record.metrics], axis=0) for i in (0, 1))
        now = time.monotonic()
        rate = record.tokens / (now - self._mark)
        self._mark = now
        entry = {
            "step": record.step,
            "kind": "train",
            "loss": losses.tolist(),
            "grad_norm": norms.tolist(),
            "learning_rate": float(loop.learning_rate(self.config.optimizer)(record.step - 1)),
            "tokens_per_second": rate,
        }
        self.log.write(entry)
        self.progress.train(entry, self._seconds_left())

    def _seconds_left(self) -> float:
        seconds = time.monotonic() - self._began
        return seconds / (self.last - self.start) * (self.total - self.last)

    def _evaluate(self, check: Callable[[Any], Checked]) -> float:
        self._fail_if_not_finite(self.state.failed)
        began = time.monotonic()
        checked = check(self.state.params)
        self.checking += time.monotonic() - began
        self.log.write({"step": self.last, "kind": "eval", **checked.entry})
        self.progress.say(f"step {self.last}: {checked.line}")
        return checked.score

    def _out_of_patience(self) -> bool:
        scores = [mean(record[self.metric]) for record in self.log.history if record["kind"] == "eval"]
        if self._patience is None or not scores:
            return False
        best = max(scores) if BEST[self.metric] == "max" else min(scores)
        return len(scores) - 1 - scores.index(best) >= self._patience

    def _with(self, state: loop.TrainState, start: Params) -> loop.TrainState:
        """The state with these parameters, the same for every seed."""

        def place(name: str, value: Any) -> jax.Array:
            whole = np.broadcast_to(np.asarray(value), self.plan.target.params[name].shape)
            placed: Any = self.plan.shardings.params[name]
            return jax.make_array_from_callback(whole.shape, placed, lambda part: np.array(whole[part]))

        return state._replace(params=state.params | {name: place(name, x) for name, x in start.items()})

    def _save(self, score: float | None = None) -> None:
        self._fail_if_not_finite(self.state.failed)
        record = {
            "config": dataclasses.asdict(self.config),
            "identity": self._identity,
            "seeds": list(self.seeds),
            **self._keeps,
            "data": self.streams.get_state(),
            "history": self.log.history,
            "seconds": self.seconds,
            "checking": self.checking,
        }
        self.store.save(self.last, self.state, record, score)

    def _fail_if_not_finite(self, failed: jax.Array) -> None:
        steps = np.asarray(failed)
        if (steps == loop.NEVER).all():
            return
        worst = int(np.where(steps == loop.NEVER, np.iinfo(np.int32).max, steps).argmin())
        self.store.wait()
        saved = self.store.steps()
        where = (
            f"the last good checkpoint is {self.store.folder / str(saved[-1])}"
            if saved
            else "no checkpoint was made yet"
        )
        raise TrainingFailed(
            f"the loss, the gradient or the parameters of seed {self.seeds[worst]} stopped being finite at step "
            f"{steps[worst] + 1}; {where}. A lower --lr or --clip or a longer --warmup (with another --out) may help."
        )
