"""The checks behind `jaxattn.testing`."""
