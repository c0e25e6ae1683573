"""Frozen dataclasses as pytrees."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax


def register(cls: type) -> type:
    """Registers a frozen dataclass as a pytree: `int`, `str` and `bool` fields are static, the others are leaves.

    A field of another type is static with `dataclasses.field(metadata={"static": True})`; its values must be
    hashable. Array fields are best annotated `Any`: transformations put placeholders there.

    Not by `jax.tree_util.register_dataclass`: with it the structures of two classes with equally many fields compare
    equal, and code compiled for the one would be run for the other.
    """
    fields = dataclasses.fields(cls)
    static = tuple(
        f.name for f in fields if f.metadata.get("static") or f.type in (int, str, bool, int | None)
    )
    arrays = tuple(f.name for f in fields if f.name not in static)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in arrays)

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, name) for name in arrays), (cls, *(getattr(x, name) for name in static))

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, auxiliary = flatten(x)
        return tuple(zip(keys, children, strict=True)), auxiliary

    def unflatten(auxiliary: tuple[Any, ...], children: Iterable[Any]) -> Any:
        # Past __init__: transformations put placeholders where arrays belong.
        made: Any = object.__new__(cls)
        for name, value in (*zip(arrays, children, strict=True), *zip(static, auxiliary[1:], strict=True)):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
