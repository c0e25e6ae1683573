"""Position encodings as pure functions."""
