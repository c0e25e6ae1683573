"""Time, memory and provenance."""
