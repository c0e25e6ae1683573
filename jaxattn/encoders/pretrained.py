"""Encoders from and to folders with config.json and model.safetensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxattn.core.parameters import axes_of
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor
from jaxattn.encoders.weights import read_parameters, write_parameters
from jaxattn.softmax.mechanism import SoftmaxModule

Placement = Callable[[str, tuple[str | None, ...], tuple[int, ...]], jax.sharding.Sharding]
Model = TypeVar("Model", bound=nnx.Module)


def load_parameters(
    encoder: Model,
    folder: Path,
    config: EncoderConfig,
    dtype: Any,
    sharding: jax.sharding.Sharding | Placement | None,
    table: Mapping[str, Tensor] | None = None,
) -> tuple[Model, tuple[str, ...]]:
    """Fills an encoder of shapes with the parameters of a checkpoint.

    Args:
        encoder: from `nnx.eval_shape`.
        folder: of the safetensors files.
        config: of the encoder.
        dtype: of the parameters.
        sharding: see `TextEncoder.from_pretrained`.
        table: places of the parameters; None for those of an encoder alone.

    Returns:
        The encoder, and the names of the tensors that were left out.
    """
    graph, state = nnx.split(encoder)
    variables = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}

    def place(path: str, array: np.ndarray) -> jax.Array:
        where = sharding
        if where is not None and not isinstance(where, jax.sharding.Sharding):
            where = where(path, axes_of(variables[path]), array.shape)
        return jax.device_put(array.astype(dtype), where)

    shapes = {path: variable.shape for path, variable in variables.items()}
    parameters, left_out = read_parameters(folder, config, shapes, place, table)
    for path, variable in variables.items():
        variable.set_value(parameters[path])
    return nnx.merge(graph, state), left_out


def save_encoder(
    encoder: Any,
    config: EncoderConfig,
    folder: Path,
    model: nnx.Module | None = None,
    table: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes config.json and model.safetensors, as transformers reads them; see `TextEncoder.save_pretrained`.

    Args:
        encoder: whose layers must attend by softmax.
        config: of the encoder.
        folder: created if it does not exist.
        model: the encoder with a head; None for the encoder alone.
        table: places of the model's parameters.
    """
    for number, block in enumerate(encoder.blocks):
        if not isinstance(block.attention.mechanism, SoftmaxModule):
            raise ValueError(
                "save_pretrained writes files of models with softmax in every layer; layer "
                f"{number} has {type(block.attention.mechanism).__name__}. Save nnx.state(encoder) instead."
            )
    folder.mkdir(parents=True, exist_ok=True)
    variables = nnx.to_flat_state(nnx.state(model or encoder, nnx.Param))
    parameters = {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in variables}
    settings = config.to_dict()
    # Readers take the dtype of the weights from here.
    settings.pop("torch_dtype", None)
    settings["dtype"] = str(next(iter(parameters.values())).dtype)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_parameters(folder / "model.safetensors", config, parameters, table)
