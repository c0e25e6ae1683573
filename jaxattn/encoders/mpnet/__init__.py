"""MPNet: BERT's blocks with a learned bias for every bucket of distances."""
