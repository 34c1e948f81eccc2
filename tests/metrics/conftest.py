import pytest

from sksae import TopKSAE
from sksae.datasets import make_activations


@pytest.fixture(scope="session")
def planted():
    """X, features and codes of 600 samples with 24 planted features in 16 dimensions."""
    return make_activations(600, 16, 24, n_active=3, offset=0.5, return_codes=True, random_state=0)


@pytest.fixture(scope="session")
def X(planted):
    """The samples alone."""
    return planted[0]


@pytest.fixture(scope="session")
def sae(X):
    """A quick fit of them."""
    return TopKSAE(24, top_k=3, nb_epochs=5, batch_size=64, random_state=0).fit(X)
