"""The training tasks, each in a folder of its own."""
