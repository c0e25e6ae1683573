"""Sequence classifiers trained from scratch."""
