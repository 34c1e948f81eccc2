"""Each variant finds the directions that its training data were made of."""

import numpy as np
import pytest

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    VanillaSAE,
)
from sksae.datasets import make_activations

TRAINING = {"nb_epochs": 25, "batch_size": 256, "random_state": 0}


@pytest.fixture(scope="module")
def planted():
    return make_activations(
        8000, 32, 48, n_active=3, offset=1.0, noise=0.02, return_codes=True, random_state=0
    )


def cosines(dictionary, components):
    """Largest cosine of each planted direction with a learnt one."""
    return (dictionary @ components.T).max(axis=1)


@pytest.mark.parametrize(
    "sae",
    [
        VanillaSAE(64, **TRAINING),
        TopKSAE(64, top_k=3, **TRAINING),
        BatchTopKSAE(64, top_k=3, **TRAINING),
        JumpReLUSAE(64, l0_coefficient=0.02, **TRAINING),
        JumpReLUSAE(64, target_l0=3, **TRAINING),
        GatedSAE(64, target_l0=3, **TRAINING),
        MatryoshkaSAE(64, top_k=3, prefixes=[0.5, 1.0], **TRAINING),
        MatchingPursuitSAE(64, top_k=3, **TRAINING),
        ArchetypalSAE(64, top_k=3, **TRAINING),
    ],
    ids=lambda sae: f"{type(sae).__name__}-{sae.target_l0}",
)
def test_planted_directions_are_recovered(sae, planted):
    X, dictionary, codes = planted
    sae.fit(X)
    found = cosines(dictionary, sae.components_)
    assert (found > 0.9).mean() > 0.9
    matched = (dictionary @ sae.components_.T).argmax(axis=1)
    learnt = sae.transform(X).toarray()[:, matched]
    correlations = [np.corrcoef(learnt[:, j], codes[:, j])[0, 1] for j in np.where(found > 0.9)[0]]
    assert np.median(correlations) > 0.9


def test_a_random_dictionary_recovers_nothing(planted):
    X, dictionary, _ = planted
    untrained = TopKSAE(64, top_k=3, lr=1e-12, nb_epochs=1, random_state=0).fit(X)
    assert (cosines(dictionary, untrained.components_) > 0.9).mean() == 0
