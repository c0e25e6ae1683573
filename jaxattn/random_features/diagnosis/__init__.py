"""Measuring whether random features can replace softmax attention on given queries and keys."""

from jaxattn.random_features.diagnosis.diagnose import diagnose
from jaxattn.random_features.diagnosis.result import Diagnosis

__all__ = [
    "Diagnosis",
    "diagnose",
]
