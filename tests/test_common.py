"""scikit-learn's own checks, for every SAE, with no expected failure."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    Crosscoder,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    Transcoder,
    VanillaSAE,
)

VARIANTS = (
    VanillaSAE,
    TopKSAE,
    BatchTopKSAE,
    JumpReLUSAE,
    GatedSAE,
    MatryoshkaSAE,
    Crosscoder,
    Transcoder,
    MatchingPursuitSAE,
    ArchetypalSAE,
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [cls() for cls in VARIANTS] + [cls(sparse_output=False) for cls in VARIANTS[:4]]
)
def test_scikit_learn_check(estimator, check):
    check(estimator)
