"""Attention over uniform trees in fused kernels for TPUs (Pallas, Mosaic): scores stay in VMEM."""
