"""Position encodings as pure functions."""

from jaxattn.positions.morlet import MorletParameters, morlet_encoding, morlet_init, morlet_window
from jaxattn.positions.rotary import Rotary, rotary
from jaxattn.positions.sinusoidal import sinusoidal_encoding

__all__ = [
    "MorletParameters",
    "Rotary",
    "morlet_encoding",
    "morlet_init",
    "morlet_window",
    "rotary",
    "sinusoidal_encoding",
]
