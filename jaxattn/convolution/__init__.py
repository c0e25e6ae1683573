"""Multi-scale convolution over token sequences."""

from jaxattn.convolution.multi_scale import multi_scale_conv

__all__ = [
    "multi_scale_conv",
]
