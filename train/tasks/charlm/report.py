"""What a finished run leaves behind: pictures, a sampled text, and summary.json."""

import dataclasses
import json
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxattn
from train.engine import plots
from train.engine.evaluate import evaluate_prefixes
from train.engine.functional import Functional, Params
from train.engine.metrics import LN2, mean, spread
from train.tasks.charlm.config import CharLMConfig
from train.tasks.charlm.corpora import Corpus, decode
from train.tasks.charlm.sample import write
from train.tasks.charlm.windows import consecutive_windows

DISTRIBUTIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def finish(
    config: CharLMConfig,
    corpus: Corpus,
    model: Functional,
    mesh: Mesh,
    params: Params,
    history: Sequence[dict[str, Any]],
    evaluate: Callable[[Params, np.ndarray], list[float]],
    *,
    seconds: float,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the final parameters on all validation windows and writes the report.

    Args:
        config: of the run.
        corpus: its text.
        model: the model as functions.
        mesh: devices.
        params: final parameters, (seeds, ...).
        history: all metric records.
        evaluate: see `evaluate.make_evaluate`.
        seconds: of training, over all resumed parts.
        out: run folder.
        say: prints a line.

    Returns:
        The content of summary.json.
    """
    seeds = config.seeds()
    context = config.model.context_length
    say("measuring on all validation windows")
    final = evaluate(params, consecutive_windows(corpus.validation, context_length=context))
    evals = [record["val_loss"] for record in history if record["kind"] == "eval"]
    rates = [record["tokens_per_second"] for record in history if record["kind"] == "train"]
    summary: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "seeds": list(seeds),
        "steps": config.optimizer.steps,
        "parameters": model.num_params(),
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "characters": len(corpus.train) + len(corpus.validation),
        },
        "val_loss": over_seeds(final),
        "val_bits_per_character": mean(final) / LN2,
        "best_val_loss": over_seeds(np.min(evals, axis=0).tolist()),
        "seconds": seconds,
        "tokens_per_second": float(np.median(rates)) if rates else None,
        **provenance(mesh),
    }
    if config.evaluation.prefix_windows:
        windows = consecutive_windows(
            corpus.validation, context_length=context, count=config.evaluation.prefix_windows
        )
        say(f"measuring {len(windows)} windows prefix by prefix, as generation sees them")
        summary["prefix_windows"] = len(windows)
        summary["val_loss_whole"] = over_seeds(evaluate(params, windows))
        summary["val_loss_prefix"] = over_seeds(
            evaluate_prefixes(model, mesh, params, windows, seeds=len(seeds))
        )

    replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    first = {name: np.asarray(value)[0] for name, value in replicate(params).items()}
    if jax.process_index() == 0:
        plots.loss_curve(history, seeds, out / "loss.png")
        plots.learned_parameters(first, out)
        if config.evaluation.sample_tokens:
            text = _sample(config, corpus, model, first)
            (out / "sample.txt").write_text(text + "\n", encoding="utf-8")
            say(f"\n--- a sample ---\n{text}\n----------------\n")
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _sample(config: CharLMConfig, corpus: Corpus, model: Functional, params: dict[str, np.ndarray]) -> str:
    evaluation = config.evaluation
    opening = "The "
    if not set(opening) <= set(corpus.vocabulary):
        opening = decode(corpus.validation[: len(opening)], corpus.vocabulary)
    return write(
        model.module({name: jax.numpy.asarray(value) for name, value in params.items()}),
        corpus.vocabulary,
        opening if evaluation.prompt is None else evaluation.prompt,
        evaluation.sample_tokens,
        seed=config.run.seed,
        temperature=evaluation.temperature,
    )


def provenance(mesh: Mesh) -> dict[str, Any]:
    """The devices and versions that numbers come from."""
    return {
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "mesh": dict(mesh.shape),
        },
        "versions": {"python": platform.python_version(), "jaxattn": jaxattn.__version__}
        | {name: metadata.version(name) for name in DISTRIBUTIONS},
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, spread and the numbers themselves."""
    return {"mean": mean(values), "spread": spread(values), "per_seed": list(values)}
