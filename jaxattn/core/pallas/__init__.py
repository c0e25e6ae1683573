"""What the fused kernels for TPUs of several families share."""
