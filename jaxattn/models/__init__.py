"""Models built from the modules."""

from jaxattn.models.generate import generate, sample_token
from jaxattn.models.language_model import LanguageModel
from jaxattn.models.pair_classifier import PairClassifier
from jaxattn.models.sequence_classifier import SequenceClassifier
from jaxattn.models.text_classifier import TextClassifier

__all__ = [
    "LanguageModel",
    "PairClassifier",
    "SequenceClassifier",
    "TextClassifier",
    "generate",
    "sample_token",
]
