"""Relevance of the tokens of some texts to a fine-tuned classifier's predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.nn import InceptiveHead
from jaxattn_train.engine.run import Run
from jaxattn_train.engine.sharding import first_seed
from jaxattn_train.tasks.finetune.config import FinetuneConfig
from jaxattn_train.tasks.finetune.relevance_plot import Coloured, plot_relevance, token_strings
from jaxattn_train.tasks.shared.report import Measured


def add_relevance(config: FinetuneConfig, encoder: Any, run: Run, measured: Measured) -> None:
    """Draws relevance.png of --relevance-texts texts, by the model of the first seed.

    Args:
        config: of the run.
        encoder: with the tokenizer.
        run: finished.
        measured: predictions of the best checkpoint.
    """
    if not config.evaluation.relevance_texts:
        return
    assert measured.params is not None, "of a run"
    model = run.model.module(first_seed(run.mesh, measured.params))
    if not isinstance(model.head, InceptiveHead) and model.head.pooling.kind == "cls":
        run.progress.say(
            f"no relevance.png: the {config.model.head} head reads one token, so that all relevance is on it"
        )
        return
    coloured = relevance(config, encoder, measured, model)
    if jax.process_index() == 0:
        title = f"{measured.name} part, seed {run.seeds[0]}"
        plot_relevance(coloured, run.out / "relevance.png", title=title)


def relevance(config: FinetuneConfig, encoder: Any, measured: Measured, model: Any) -> list[Coloured]:
    """Some texts, evenly spaced over the part, with the relevance of each of their tokens."""
    part, chances, length = measured.part, measured.chances[0], config.data.max_length
    rows = np.unique(np.linspace(0, len(part) - 1, config.evaluation.relevance_texts).astype(int))
    padded = part.padded(rows, length)
    mask = np.arange(length) < padded.lengths[:, None]
    # Relevance is to one class at a time: the most likely.
    likeliest = chances[rows].argmax(axis=-1)
    classes = None if config.data.loss == "binary" else jnp.asarray(likeliest)
    run = jax.jit(lambda ids, mask: model.relevance(ids, mask, classes=classes))
    found = np.asarray(run(jnp.asarray(padded.tokens), jnp.asarray(mask)))
    coloured = []
    for i, (row, ids, tokens) in enumerate(zip(rows, padded.tokens, padded.lengths, strict=True)):
        predicted, label = measured.predicted[0][row], part.labels[row]
        said, truth = (measured.label(one) or "no label" for one in (predicted, label))
        about = f", relevance to {measured.classes[likeliest[i]]}" if config.data.loss == "multilabel" else ""
        heading = f"{said} (p {chances[row].max():.2f}; labelled {truth}){about}"
        wrong = bool(np.any(predicted != label))
        coloured.append(Coloured(heading, token_strings(encoder, ids[:tokens]), found[i, :tokens], wrong))
    return coloured
