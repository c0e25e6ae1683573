"""The training loop and what surrounds it; it knows no task."""
