"""The sparse autoencoders as scikit-learn estimators."""

from ._archetypal import ArchetypalSAE
from ._base import BaseSAE
from ._batchtopk import BatchTopKSAE
from ._crosscoder import Crosscoder
from ._fit_many import fit_many
from ._gated import GatedSAE
from ._jumprelu import JumpReLUSAE
from ._matching_pursuit import MatchingPursuitSAE
from ._matryoshka import MatryoshkaSAE
from ._topk import TopKSAE
from ._transcoder import Transcoder
from ._vanilla import VanillaSAE

__all__ = [
    "ArchetypalSAE",
    "BaseSAE",
    "BatchTopKSAE",
    "Crosscoder",
    "GatedSAE",
    "JumpReLUSAE",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "TopKSAE",
    "Transcoder",
    "VanillaSAE",
    "fit_many",
]
