"""Sparse autoencoders on transformer activations, as scikit-learn estimators."""

from . import datasets, losses, metrics
from .estimators import BaseSAE, TopKSAE

__version__ = "0.1.0"

__all__ = ["BaseSAE", "TopKSAE", "datasets", "losses", "metrics"]
