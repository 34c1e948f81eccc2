"""scikit-learn's own checks, for every SAE, with no expected failure."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    Crosscoder,
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    RandomSAE,
    ShuffledActivations,
    SoftFrozenSAE,
    StableConcepts,
    TopKSAE,
    Transcoder,
    VanillaSAE,
)

VARIANTS = (VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, GatedSAE, MatryoshkaSAE)
LATER_VARIANTS = (Crosscoder, Transcoder, MatchingPursuitSAE, ArchetypalSAE)
CONTROLS = (FrozenDecoderSAE, SoftFrozenSAE, FrozenEncoderSAE, RandomSAE)
QUICK = TopKSAE(16, top_k=4, nb_epochs=2)
WRAPPERS = (
    ShuffledActivations(QUICK, random_state=0),
    StableConcepts(QUICK, n_seeds=2, control_rate=0.5, random_state=0),
    StableConcepts(QUICK, n_seeds=2, threshold=0.2, matching="max", random_state=0),
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [cls() for cls in VARIANTS]
    + [cls(64, top_k=8) for cls in LATER_VARIANTS]
    + [cls(32, top_k=4, nb_epochs=2) for cls in CONTROLS]
    + [cls(sparse_output=False) for cls in VARIANTS[:4]]
    + list(WRAPPERS)
)
def test_scikit_learn_check(estimator, check):
    check(estimator)
