"""Flax NNX modules: each holds parameters and calls kernels."""
