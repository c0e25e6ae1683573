"""What sentence-transformers puts behind an encoder: its files, and the layers in them."""
