"""GTE (also called "new"): post-norm blocks with rotary positions and gated MLPs."""
