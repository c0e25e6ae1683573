"""Linear attention in fused kernels for TPUs (Pallas, Mosaic): features are made in VMEM and never leave it."""
