"""Pure attention kernels on arrays; they know nothing of Flax, tasks or files."""
