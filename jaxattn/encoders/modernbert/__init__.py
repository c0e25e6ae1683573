"""ModernBERT: pre-norm blocks, gated MLPs, rotary positions, local attention."""
