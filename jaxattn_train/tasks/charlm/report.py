"""The report of a language model's run: final losses, plots, a sampled text, and summary.json."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxattn_train.engine import plots
from jaxattn_train.engine.functional import Params
from jaxattn_train.engine.metrics import LN2, mean
from jaxattn_train.engine.provenance import over_seeds
from jaxattn_train.engine.run import Run
from jaxattn_train.engine.sharding import first_seed
from jaxattn_train.tasks.charlm.config import CharLMConfig
from jaxattn_train.tasks.charlm.corpora import Corpus, decode
from jaxattn_train.tasks.charlm.evaluation import evaluate_prefixes
from jaxattn_train.tasks.charlm.sample import write
from jaxattn_train.tasks.charlm.windows import consecutive_windows


def finish(
    config: CharLMConfig,
    corpus: Corpus,
    run: Run,
    evaluate: Callable[[Params, np.ndarray], list[float]],
) -> dict[str, Any]:
    """Measures the final parameters on all validation windows and writes the report.

    Args:
        config: of the run.
        corpus: its text.
        run: finished.
        evaluate: see `evaluation.make_evaluate`.

    Returns:
        The content of summary.json.
    """
    model, params, out, say = run.model, run.state.params, run.out, run.progress.say
    context = config.model.context_length
    say("measuring on all validation windows")
    final = evaluate(params, consecutive_windows(corpus.validation, context_length=context))
    evals = [record["val_loss"] for record in run.log.history if record["kind"] == "eval"]
    rates = [record["tokens_per_second"] for record in run.log.history if record["kind"] == "train"]
    characters = len(corpus.train) + len(corpus.validation)
    summary = run.summary(
        corpus={"name": corpus.name, "sha256": corpus.sha256, "characters": characters},
        val_loss=over_seeds(final),
        val_bits_per_character=mean(final) / LN2,
        best_val_loss=over_seeds(np.min(evals, axis=0).tolist()),
        tokens_per_second=float(np.median(rates)) if rates else None,
    )
    if config.evaluation.prefix_windows:
        windows = consecutive_windows(
            corpus.validation, context_length=context, count=config.evaluation.prefix_windows
        )
        say(f"measuring {len(windows)} windows prefix by prefix, as in generation")
        summary["prefix_windows"] = len(windows)
        summary["val_loss_whole"] = over_seeds(evaluate(params, windows))
        summary["val_loss_prefix"] = over_seeds(
            evaluate_prefixes(model, run.mesh, params, windows, seeds=len(run.seeds))
        )
    first = first_seed(run.mesh, params)
    if jax.process_index() == 0:
        path, best = out / "loss.png", run.store.best_step()
        plots.training_curves(run.log.history, run.seeds, path, unit="nats per character", best=best)
        plots.learned_parameters({name: np.asarray(value) for name, value in first.items()}, out)
        if config.evaluation.sample_tokens:
            text = _sample(config, corpus, model.module(first))
            (out / "sample.txt").write_text(text + "\n", encoding="utf-8")
            say(f"\n--- a sample ---\n{text}\n----------------\n")
    run.write(summary)
    return summary


def _sample(config: CharLMConfig, corpus: Corpus, model: Any) -> str:
    evaluation = config.evaluation
    opening = "The "
    if not set(opening) <= set(corpus.vocabulary):
        opening = decode(corpus.validation[: len(opening)], corpus.vocabulary)
    return write(
        model,
        corpus.vocabulary,
        opening if evaluation.prompt is None else evaluation.prompt,
        evaluation.sample_tokens,
        seed=config.run.seed,
        temperature=evaluation.temperature,
    )
