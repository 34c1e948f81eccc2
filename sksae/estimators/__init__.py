"""The sparse autoencoders as scikit-learn estimators."""

from ._base import BaseSAE
from ._topk import TopKSAE

__all__ = ["BaseSAE", "TopKSAE"]
