"""Models with heads from and to folders with config.json and model.safetensors."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.families import FAMILIES
from jaxattn.encoders.heads.names import PREFIXES, HeadNames, choose, head_tensors
from jaxattn.encoders.hub import find_folder
from jaxattn.encoders.pretrained import load_parameters, save_encoder
from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.encoders.tokenizer import TextTokenizer
from jaxattn.encoders.weights import Checkpoint

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str | Path,
    rows: Mapping[str, tuple[HeadNames, ...]],
    build: Callable[..., Any],
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    **where: Any,
) -> Any:
    """An encoder and a head of a checkpoint.

    Args:
        name_or_path: a folder or the name of a repository.
        rows: names of the task's heads, by family.
        build: (encoder, names of the head's layers, dtypes, rngs) -> the model, with the two as .encoder and .head.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        **where: arguments of `find_folder`.
    """
    folder = find_folder(name_or_path, **where)
    config = EncoderConfig.from_folder(folder)
    with contextlib.ExitStack() as stack:
        present = Checkpoint(folder, FAMILIES[config.model_type], stack).others
    names = choose(rows, config, present)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def make() -> Any:
        rngs = nnx.Rngs(0)
        return build(TextEncoder(config, rngs=rngs, **options), names, rngs=rngs, **options)

    table = model_tensors(names, config)
    model, left_out = load_parameters(nnx.eval_shape(make), folder, config, param_dtype, None, table)
    model.encoder.tokenizer = TextTokenizer.load(folder)
    model.encoder.left_out = left_out
    if left_out:
        logger.info("left out of %s: %s", folder, ", ".join(left_out))
    return model


def save_model(model: Any, names: HeadNames, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Writes files that transformers reads as a model with this head; `settings` are put into config.json."""
    config = EncoderConfig.from_dict(model.encoder.config.to_dict() | (settings or {}))
    prefix = PREFIXES.get(config.model_type, config.model_type)
    table = {
        path: dataclasses.replace(tensor, name=f"{prefix}.{tensor.name}")
        if path.startswith("encoder.") or (names.inside and path.startswith("head.transform.dense"))
        else tensor
        for path, tensor in model_tensors(names, config).items()
    }
    save_encoder(model.encoder, config, folder, model, table)
    if model.encoder.tokenizer is not None:
        model.encoder.tokenizer.save(folder)


def model_tensors(names: HeadNames, config: EncoderConfig) -> dict[str, Any]:
    """The places of all parameters of an encoder and its head, by their paths."""
    encoder = FAMILIES[config.model_type].tensors(config)
    head = head_tensors(names, config, tied=is_tied(config))
    return {f"encoder.{path}": tensor for path, tensor in encoder.items()} | {
        f"head.{path}": tensor for path, tensor in head.items()
    }


def is_tied(config: EncoderConfig) -> bool:
    """Whether masked language modelling uses the table of words for its last layer."""
    return bool(config.to_dict().get("tie_word_embeddings", True))


def labels_of(config: EncoderConfig) -> tuple[str, ...]:
    """Names of the classes of a checkpoint, in order; transformers' default is two."""
    source = config.to_dict()
    names = source.get("id2label")
    if names:
        return tuple(names[key] for key in sorted(names, key=int))
    return tuple(f"LABEL_{i}" for i in range(source.get("num_labels") or 2))
