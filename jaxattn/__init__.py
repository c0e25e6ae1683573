"""Structured attention for JAX: kernels that compose, with Flax modules on top."""

__version__ = "0.1.0"
