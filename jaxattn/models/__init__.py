"""Models built from the modules."""

from jaxattn.models.generate import generate, sample_token
from jaxattn.models.language_model import LanguageModel

__all__ = ["LanguageModel", "generate", "sample_token"]
