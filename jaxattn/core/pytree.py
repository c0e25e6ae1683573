"""Frozen dataclasses as pytrees, and pytrees as arguments of functions that `jax.export` serialises."""

import ast
import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
from jax import export

Named = TypeVar("Named")


def register(cls: type) -> type:
    """Registers a frozen dataclass as a pytree: `int`, `str` and `bool` fields are static, the others are leaves.

    A field of another type is static with `dataclasses.field(metadata={"static": True})`; its values must be
    hashable, and Python literals if exported functions that take the class are to be serialised. Array fields are
    best annotated `Any`: transformations put placeholders there.

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
    # A class that is defined again, as by running a cell of a notebook twice, has its name taken.
    with contextlib.suppress(ValueError):
        export.register_pytree_node_serialization(
            cls,
            serialized_name=_name(cls),
            serialize_auxdata=lambda auxiliary: repr(auxiliary[1:]).encode(),
            deserialize_auxdata=lambda text: (cls, *ast.literal_eval(text.decode())),
        )
    return cls


def serializable(cls: type[Named]) -> type[Named]:
    """Lets `jax.export` serialise functions that take or return a named tuple."""
    return export.register_namedtuple_serialization(cls, serialized_name=_name(cls))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
