"""Masked language modelling on the user's own text, from a pretrained encoder on."""
