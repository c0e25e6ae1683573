"""Loading of a trained model: the parameters of one seed from a run's checkpoint."""

from collections.abc import Callable
from typing import Any

import jax

from jaxattn_train.engine import checkpoints
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.errors import TrainingFailed, UserError


def load_trained(
    path: str,
    make: Callable[[dict[str, Any]], Functional],
    *,
    step: int | None = None,
    model_seed: int | None = None,
) -> tuple[Functional, Params, dict[str, Any]]:
    """A trained model.

    Args:
        path: run folder or its `checkpoints`.
        make: record of a checkpoint -> the model as functions.
        step: None for the best.
        model_seed: one of the seeds that were trained; None for the first.

    Returns:
        The model, its parameters, and the record.

    Raises:
        UserError: no such folder, step or seed.
        TrainingFailed: the checkpoint is damaged; names the steps to try instead.
    """
    folder = checkpoints.find(path)
    store = checkpoints.Checkpoints(folder, read_only=True, metric=checkpoints.metric_of(folder))
    steps = store.steps()
    chosen = store.best_step() if step is None else step
    if chosen is None or chosen not in steps:
        raise UserError(f"--step must be one of {', '.join(map(str, steps))}; got {step}.")
    try:
        record = store.record(chosen)
        functional = make(record)
        seeds = record["seeds"]
        seed = seeds[0] if model_seed is None else model_seed
        if seed not in seeds:
            raise UserError(f"--model-seed must be one of {', '.join(map(str, seeds))}; got {seed}.")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct((len(seeds), *shape.shape), shape.dtype, sharding=device)
            for name, shape in functional.shapes.items()
        }
        params = store.params(chosen, target)
    except TrainingFailed as error:
        others = ", ".join(str(s) for s in steps if s != chosen)
        hint = f"; try --step with one of {others}" if others else "; there is no other"
        raise TrainingFailed(f"{error}{hint}.") from error
    return functional, {name: value[seeds.index(seed)] for name, value in params.items()}, record
