"""The place and layout of a parameter in a checkpoint."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A parameter's place in a checkpoint.

    Attributes:
        name: the tensor's name, without the prefix of a task model.
        kind: "same"; "flat", stored in one axis; "linear", stored (outputs, inputs) in two; "conv", stored (outputs,
            inputs, width).
        input_axes: of a linear layer, how many leading axes of the parameter are inputs.
        part: which of the equal blocks of rows this parameter is, in a tensor that holds several.
        parts: how many there are.
    """

    name: str
    kind: str = "same"
    input_axes: int = 1
    part: int = 0
    parts: int = 1

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this parameter's rows in the checkpoint."""
        if self.kind == "linear":
            outputs, inputs = shape[self.input_axes :], shape[: self.input_axes]
            return (int(np.prod(outputs)), int(np.prod(inputs)))
        if self.kind == "conv":
            return shape[::-1]
        return (int(np.prod(shape)),) if self.kind == "flat" else shape

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole tensor in the checkpoint."""
        rows, *rest = self.block_shape(shape)
        return (rows * self.parts, *rest)

    def to_parameter(self, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """From the rows in the checkpoint to the parameter."""
        return (block if self.kind in ("same", "flat") else block.T).reshape(shape)

    def to_block(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `to_parameter`."""
        block = self.block_shape(parameter.shape)
        if self.kind in ("same", "flat"):
            return np.ascontiguousarray(parameter.reshape(block))
        return np.ascontiguousarray(parameter.reshape(block[::-1]).T)


def linear(
    path: str, name: str, *, bias: bool = True, input_axes: int = 1, part: int = 0, parts: int = 1
) -> dict[str, Tensor]:
    """The kernel and the offset of a linear layer."""
    table = {f"{path}.kernel": Tensor(f"{name}.weight", "linear", input_axes, part, parts)}
    if bias:
        table[f"{path}.bias"] = Tensor(f"{name}.bias", "flat", 1, part, parts)
    return table


def norm(path: str, name: str, *, bias: bool = True) -> dict[str, Tensor]:
    """The scale and the offset of a normalisation."""
    table = {f"{path}.scale": Tensor(f"{name}.weight")}
    if bias:
        table[f"{path}.bias"] = Tensor(f"{name}.bias")
    return table
