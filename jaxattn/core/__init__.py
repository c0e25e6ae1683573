"""What all families of attention share."""
