"""Texts and the pipeline that cuts batches out of them."""
