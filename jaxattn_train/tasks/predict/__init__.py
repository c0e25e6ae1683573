"""Trained text classifiers on new texts: labels, and scores of labelled ones."""

from jaxattn_train.tasks.predict.classifier import Classifier, load

__all__ = ["Classifier", "load"]
