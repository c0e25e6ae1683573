"""Trained text classifiers on new texts: labels, and scores of labelled ones."""
