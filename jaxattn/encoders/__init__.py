"""Pretrained text encoders: BERT and eleven relatives, with any attention inside."""

from jaxattn.encoders.calibration import calibrate
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.text_encoder import TextEncoder

__all__ = ["EncoderConfig", "TextEncoder", "calibrate"]
