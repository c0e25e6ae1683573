"""Models built from the modules."""

from jaxattn.models.generate import generate, sample_token
from jaxattn.models.language_model import LanguageModel
from jaxattn.models.pair_classifier import PairClassifier
from jaxattn.models.pretrained import EncoderConfig, TextEncoder, calibrate
from jaxattn.models.sequence_classifier import SequenceClassifier
from jaxattn.models.text_classifier import TextClassifier

__all__ = [
    "EncoderConfig",
    "LanguageModel",
    "PairClassifier",
    "SequenceClassifier",
    "TextClassifier",
    "TextEncoder",
    "calibrate",
    "generate",
    "sample_token",
]
