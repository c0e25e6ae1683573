"""What the classification tasks share: options, losses, scores, the training loop and the report."""
