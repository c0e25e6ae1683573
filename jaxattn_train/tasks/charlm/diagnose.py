"""`jaxattn-train diagnose`: whether random features could replace a trained model's attention."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from jaxattn.models import LanguageModel
from jaxattn.nn import unroll_layers
from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import DataConfig
from jaxattn_train.tasks.charlm.corpora import load_corpus
from jaxattn_train.tasks.charlm.sample import load
from jaxattn_train.tasks.charlm.windows import consecutive_windows
from jaxattn_train.tasks.shared.recorder import Recorder, Tensors


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig(Options, at_least={"windows": 1}):
    """Measures, layer by layer, how well random features approximate a checkpoint's softmax attention."""

    run: str
    """Run folder, such as runs/charlm-demo."""
    text_file: str | None = None
    """Another text in its characters, or the place to which the run's own has moved."""
    windows: int = 4
    """Validation windows to read."""
    num_features: tuple[int, ...] = (64, 128, 256)
    """Numbers of features to try."""
    save: str | None = None
    """Also write the queries, keys and values of all layers, (layers * windows, T, N, H), into this .npz file."""


def main(argv: Sequence[str]) -> int:
    """Parses the flags, reads text with the model, prints a diagnosis of each layer."""
    config = parse(DiagnoseConfig, argv, command="diagnose")
    model, record = load(config.run)
    data = DataConfig(**record["config"]["data"])
    data = data if config.text_file is None else DataConfig(text_file=config.text_file)
    corpus = load_corpus(data, context_length=model.max_length)
    if corpus.vocabulary != record["vocabulary"]:
        raise UserError(f"{corpus.name} has other characters than the text of {config.run}; see --text-file.")
    windows = consecutive_windows(corpus.validation, context_length=model.max_length, count=config.windows)
    layers = attention_tensors(model, jnp.asarray(windows[:, :-1]))
    if config.save is not None:
        stacked = {
            name: np.concatenate([getattr(layer, name) for layer in layers]) for name in Tensors._fields
        }
        np.savez_compressed(Path(config.save), q=stacked["query"], k=stacked["key"], v=stacked["value"])
        print(f"wrote {config.save}: {len(layers)} layers, {stacked['query'].shape} each of q, k, v")
    for number, layer in enumerate(layers):
        print(f"\nlayer {number}")
        print(jaxattn.diagnose(*layer, is_causal=True, num_features=config.num_features))
    return 0


def attention_tensors(model: LanguageModel, tokens: jax.Array) -> list[Tensors]:
    """Queries, keys and values of every layer while the model reads `tokens` (B, T); the model is left unchanged."""
    model = unroll_layers(model)
    attentions = [block.attention for block in model.decoder.blocks]
    recorders = [Recorder(attention.mechanism) for attention in attentions]
    for attention, recorder in zip(attentions, recorders, strict=True):
        attention.mechanism = recorder
    model(tokens)
    return [recorder.seen for recorder in recorders]
