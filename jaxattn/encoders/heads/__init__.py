"""Heads that come with checkpoints: masked language modelling, classes of texts, classes of tokens."""
