"""Sparse autoencoders on transformer activations, as scikit-learn estimators."""

__version__ = "0.1.0"
