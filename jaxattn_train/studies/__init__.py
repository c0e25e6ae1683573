"""Sweeps and comparisons over seeds."""
