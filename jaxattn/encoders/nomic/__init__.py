"""Nomic-BERT: post-norm blocks with rotary positions and gated MLPs, without offsets."""
