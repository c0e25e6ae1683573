"""Parameters from and to safetensors files, by the names that transformers gives them."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.extra import optional
from jaxattn.encoders.families import FAMILIES, Family
from jaxattn.encoders.layout import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F16", "BF16", "F32", "F64")
# Old names of the parts of a normalisation.
OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}


class Checkpoint:
    """The open safetensors files of a folder: names, shapes and slices of tensors, read when asked for.

    Args:
        folder: where the files are.
        family: whose names to expect; a prefix before them, such as "bert.", is recognised.
        stack: closes the files.

    Raises:
        ValueError: there are no safetensors files, one is missing or cannot be read, or no encoder is in them.
    """

    def __init__(self, folder: Path, family: Family, stack: contextlib.ExitStack):
        self.folder = folder
        self.files: dict[str, Any] = {}
        for path in weight_files(folder):
            file = stack.enter_context(open_file(path))
            self.files |= dict.fromkeys(file.keys(), file)
        found = [name for name in self.files if name == family.anchor or name.endswith(f".{family.anchor}")]
        if len(found) != 1:
            raise ValueError(
                f"{folder} must hold one encoder, with a tensor {family.anchor} (a prefix before it may stand); "
                f"got {found or 'none'} among {len(self.files)} tensors."
            )
        prefix = found[0].removesuffix(family.anchor)
        self.names: dict[str, str] = {}
        self.others: dict[str, str] = {}
        """Tensors of heads, the encoder's pooler included."""
        for stored in sorted(self.files):
            name = stored.removeprefix(prefix)
            inside = stored.startswith(prefix) and name.startswith(family.body)
            for old, new in OLD_ENDINGS.items():
                name = name.removesuffix(old) + new if name.endswith(old) else name
            (self.names if inside else self.others)[name] = stored

    def slice(self, name: str) -> Any:
        """A tensor that is not read yet."""
        stored = self.stored(name)
        return self.files[stored].get_slice(stored)

    def stored(self, name: str) -> str:
        """The whole name of a tensor; "" where there is none."""
        return self.names.get(name) or self.others.get(name, "")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            names = sorted(
                set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX} is no index of weights: {error!r}") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {', '.join(missing)}, which {INDEX} names; download the files again."
            )
        return [folder / name for name in names]
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)
    )
    holds = f"only pickled ones ({', '.join(pickles)}), which can run code when read" if pickles else "none"
    raise ValueError(
        f"{folder} must hold weights as {SINGLE}; it has {holds}. Where torch is installed, "
        "transformers.AutoModel.from_pretrained(name).save_pretrained(folder) converts a model you trust."
    )


def open_file(path: Path) -> Any:
    """A safetensors file whose tensors are read when asked for.

    Raises:
        ValueError: it is damaged.
    """
    safetensors = optional("safetensors")
    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read; download it again. ({error})") from error


def read_parameters(
    folder: Path,
    config: EncoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    place: Callable[[str, np.ndarray], jax.Array],
    table: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, jax.Array], tuple[str, ...]]:
    """Reads the parameters and places them on devices, one after another.

    Args:
        folder: of the safetensors files.
        config: of the model.
        shapes: of the parameters, by path.
        place: from a path and an array in memory to an array on devices.
        table: places of the parameters; None for those of an encoder alone.

    Returns:
        The parameters by path, and the names of the tensors that were left out.

    Raises:
        ValueError: a tensor is missing, has another shape or dtype, or has no place in the model.
    """
    family = FAMILIES[config.model_type]
    table = family.tensors(config) if table is None else table
    with contextlib.ExitStack() as stack:
        checkpoint = Checkpoint(folder, family, stack)
        known, unused = {tensor.name for tensor in table.values()}, family.unused(config)
        unknown = [name for name in checkpoint.names if name not in known and not name.endswith(unused)]
        problems = [f"{name}: not a part of such a model" for name in unknown]
        for path, tensor in table.items():
            problems += _problems(checkpoint, tensor, shapes[path])
        if problems:
            problems = list(dict.fromkeys(problems))
            raise ValueError(
                f"{len(problems)} tensors in {folder} do not fit its config.json:\n  " + "\n  ".join(problems)
            )
        taken = {checkpoint.stored(tensor.name) for tensor in table.values()}
        parameters = {
            path: place(path, _read(checkpoint, tensor, shapes[path])) for path, tensor in table.items()
        }
        return parameters, tuple(name for name in checkpoint.others.values() if name not in taken)


def _problems(checkpoint: Checkpoint, tensor: Tensor, shape: tuple[int, ...]) -> Iterator[str]:
    if not checkpoint.stored(tensor.name):
        yield f"{tensor.name}: missing"
        return
    stored = checkpoint.slice(tensor.name)
    found, wanted = tuple(stored.get_shape()), tensor.stored_shape(shape)
    if found != wanted:
        yield f"{tensor.name}: shape {found}, expected {wanted}"
    if stored.get_dtype() not in DTYPES:
        yield f"{tensor.name}: dtype {stored.get_dtype()}, expected one of {', '.join(DTYPES)}"


def _read(checkpoint: Checkpoint, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    rows = tensor.block_shape(shape)[0]
    block = checkpoint.slice(tensor.name)[tensor.part * rows : (tensor.part + 1) * rows]
    return tensor.to_parameter(block, shape)


def write_parameters(
    path: Path,
    config: EncoderConfig,
    parameters: Mapping[str, np.ndarray],
    table: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes parameters by path into one safetensors file that transformers reads; see `read_parameters`."""
    blocks: dict[str, dict[int, np.ndarray]] = {}
    table = FAMILIES[config.model_type].tensors(config) if table is None else table
    for name, tensor in table.items():
        blocks.setdefault(tensor.name, {})[tensor.part] = tensor.to_block(parameters[name])
    arrays = {name: np.concatenate([parts[part] for part in sorted(parts)]) for name, parts in blocks.items()}
    optional("safetensors.numpy").save_file(arrays, path, metadata={"format": "pt"})
