"""`jaxattn-train sample`: text from a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxattn.models import LanguageModel, generate
from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.engine.functional import Functional
from jaxattn_train.engine.trained import load_trained
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import ModelConfig
from jaxattn_train.tasks.charlm.corpora import decode, encode
from jaxattn_train.tasks.charlm.model import language_model


@dataclasses.dataclass(frozen=True)
class SampleConfig(Options, at_least={"tokens": 1}):
    """Generates text with a trained model, character by character, with cached decoding."""

    run: str
    """Run folder, such as runs/charlm-demo."""
    prompt: str | None = None
    """Text to continue, in characters of the training text; by default a line break (or its first character)."""
    tokens: int = 300
    """Characters to add. Beyond the model's context it continues from the last half of the context."""
    temperature: float = 0.8
    """0 takes the most likely character, 1 samples from the model's distribution."""
    top_k: int | None = None
    """Sample among the k most likely characters only."""
    top_p: float | None = None
    """Sample among the fewest characters whose probabilities add up to at least this."""
    seed: int = 0
    """Of the sampling."""
    step: int | None = None
    """Which checkpoint; by default the best by validation loss."""
    model_seed: int | None = None
    """Which of the trained seeds; by default the first."""


def main(argv: Sequence[str]) -> int:
    """Parses the flags, loads the model and prints the text."""
    config = parse(SampleConfig, argv, command="sample")
    model, record = load(config.run, step=config.step, model_seed=config.model_seed)
    vocabulary = record["vocabulary"]
    opening = "\n" if "\n" in vocabulary else vocabulary[0]
    prompt = opening if config.prompt is None else config.prompt
    text = write(
        model,
        vocabulary,
        prompt,
        config.tokens,
        seed=config.seed,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    print(text)
    return 0


def load(path: str, *, step: int | None = None, model_seed: int | None = None) -> tuple[LanguageModel, Any]:
    """The trained model and its record.

    Args:
        path: run folder or its `checkpoints`.
        step: None for the best by validation loss.
        model_seed: one of the seeds that were trained; None for the first.

    Returns:
        The module with its parameters, and its record; "vocabulary" are the characters it knows.

    Raises:
        UserError: no such folder, step or seed, or a folder of another kind of run.
        TrainingFailed: the checkpoint is damaged; names the steps to try instead.
    """

    def make(record: dict[str, Any]) -> Functional:
        if "vocabulary" not in record:
            raise UserError(f"{path} is no run of charlm.")
        return language_model(ModelConfig.of_record(record), len(record["vocabulary"]))

    functional, params, record = load_trained(path, make, step=step, model_seed=model_seed)
    return functional.module(params), record


def write(
    model: LanguageModel,
    vocabulary: str,
    prompt: str,
    num_tokens: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """Continues `prompt` by any number of characters.

    The model reads at most its context. When the cache is full, generation restarts from the last half of the
    context, so that every character is predicted from at least half a context of text.

    Args:
        model: the language model.
        vocabulary: its characters, in the order of their ids.
        prompt: at least one character, all of them in the vocabulary.
        num_tokens: characters to add.
        seed: of the sampling.
        temperature: 0 takes the most likely character.
        top_k: sample among the k most likely; None for all.
        top_p: sample among the fewest whose probabilities add up to at least this; None for all.

    Returns:
        The prompt and its continuation.

    Raises:
        UserError: an empty prompt, unknown characters, or an option out of range.
    """
    if not prompt:
        raise UserError("--prompt must hold at least one character.")
    text = encode(prompt, vocabulary)
    context = model.max_length
    half = context // 2
    key = jax.random.key(seed)
    left = num_tokens
    try:
        while left:
            fresh = len(text) < context
            known = text if fresh else text[-half:]
            # Later pieces have prompts of one length, so that they share one compiled loop.
            count = min(left, context - len(known))
            key, now = jax.random.split(key)
            result = generate(
                model,
                jax.numpy.asarray(known[None]),
                count,
                key=now,
                temperature=float(temperature),
                top_k=top_k,
                top_p=top_p,
            )
            text = np.concatenate([text, np.asarray(result.tokens[0, -count:], np.int32)])
            left -= count
    except ValueError as error:
        raise UserError(str(error)) from error
    return decode(text, vocabulary)
