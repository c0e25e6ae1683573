"""Typed access to the settings of a config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def require(source: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises where a setting has a value that is not supported."""
    for name, accepted in only.items():
        value = source.get(name)
        if value is not None and value not in accepted:
            words = " or ".join(map(repr, accepted))
            raise ValueError(f"{name} in config.json must be {words} here; got {value!r}.")


def setting(source: Mapping[str, Any], name: str, default: Any) -> Any:
    """A setting, or the default where it is absent or null; of the default's type."""
    value = source.get(name)
    if value is None:
        return default
    wanted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"{name} in config.json must be of type {type(default).__name__}; got {value!r}.")
    return float(value) if isinstance(default, float) else value


def read_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The content of a JSON file of a folder."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"name_or_path must hold a {name}; {folder} has none.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(settings).__name__}.")
    return settings
