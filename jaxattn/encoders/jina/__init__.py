"""JinaBERT: BERT with symmetric ALiBi in place of positions, and gated MLPs."""
