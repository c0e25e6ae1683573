"""A gate on the output of attention."""
