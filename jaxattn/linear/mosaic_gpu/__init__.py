"""Causal linear attention in a fused kernel for NVIDIA Hopper (Mosaic GPU). Experimental: never run on it."""
