"""Sweeps over attentions and seeds."""
