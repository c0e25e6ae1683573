"""Pretrained text encoders: BERT, RoBERTa, DistilBERT, DeBERTa and ModernBERT with any attention inside."""

from jaxattn.models.pretrained.calibration import calibrate
from jaxattn.models.pretrained.config import EncoderConfig
from jaxattn.models.pretrained.text_encoder import TextEncoder

__all__ = ["EncoderConfig", "TextEncoder", "calibrate"]
