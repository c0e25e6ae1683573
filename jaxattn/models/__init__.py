"""Language models, classifiers and pretrained text encoders."""

from jaxattn.encoders.calibration import calibrate
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.heads.modules import PublishedHead
from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.models.backbone import BackboneConfig
from jaxattn.models.generate import Generation, generate, stream
from jaxattn.models.language_model import LanguageModel
from jaxattn.models.masked_language_model import MaskedLanguageModel
from jaxattn.models.pair_classifier import PairClassifier
from jaxattn.models.sampling import sample_token
from jaxattn.models.sentence_encoder import SentenceEncoder
from jaxattn.models.sequence_classifier import SequenceClassifier
from jaxattn.models.text_classifier import TextClassifier
from jaxattn.models.token_classifier import TokenClassifier

__all__ = [
    "BackboneConfig",
    "EncoderConfig",
    "Generation",
    "LanguageModel",
    "MaskedLanguageModel",
    "PairClassifier",
    "PublishedHead",
    "SentenceEncoder",
    "SequenceClassifier",
    "TextClassifier",
    "TextEncoder",
    "TokenClassifier",
    "calibrate",
    "generate",
    "sample_token",
    "stream",
]
