"""Trained classifiers with another attention, without further training."""
