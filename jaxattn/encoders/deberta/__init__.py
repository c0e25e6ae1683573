"""DeBERTa-v2 and v3: relative positions in the scores, and in some a convolution."""
