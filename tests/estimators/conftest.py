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

VARIANTS = (
    VanillaSAE,
    TopKSAE,
    BatchTopKSAE,
    JumpReLUSAE,
    GatedSAE,
    MatryoshkaSAE,
    MatchingPursuitSAE,
    ArchetypalSAE,
)


@pytest.fixture(params=VARIANTS, ids=lambda c: c.__name__)
def sae_cls(request):
    """One run for each variant."""
    return request.param


@pytest.fixture(scope="session")
def X():
    """500 rows of 12 features with planted concepts and an offset."""
    return make_activations(500, 12, 24, n_active=3, offset=2.0, random_state=0)[0]


@pytest.fixture
def make(sae_cls):
    """Build a small, quick estimator of the variant."""

    def build(**params):
        params = {"nb_concepts": 24, "nb_epochs": 2, "batch_size": 64, "random_state": 0} | params
        if "top_k" in sae_cls().get_params():
            params = {"top_k": 3} | params
        return sae_cls(**params)

    return build
