"""Imports of the packages in the extra `pretrained`."""

import importlib
from types import ModuleType


def optional(name: str) -> ModuleType:
    """Imports a package of the extra.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0].replace("_", "-")
        raise ImportError(f"pretrained encoders need {package}: pip install 'jaxattn[pretrained]'") from error
