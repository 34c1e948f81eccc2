import numpy as np
import pytest

from sksae.datasets import make_activations


def test_activations_are_sums_of_their_concepts():
    X, dictionary, codes = make_activations(
        50, 8, 20, n_active=3, offset=np.arange(8), return_codes=True, random_state=0
    )
    np.testing.assert_allclose(X, codes @ dictionary + np.arange(8), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(dictionary, axis=1), 1, rtol=1e-5)
    assert (np.count_nonzero(codes, axis=1) == 3).all()
    assert 0.5 <= codes[codes > 0].min() < codes.max() <= 1.5
    assert X.dtype == dictionary.dtype == codes.dtype == np.float32


def test_noise_and_seeds():
    clean, noisy = (make_activations(2000, 8, noise=s, random_state=0)[0] for s in (0, 0.1))
    assert (noisy - clean).std() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(noisy, make_activations(2000, 8, noise=0.1, random_state=0)[0])


def test_every_concept_active():
    codes = make_activations(5, 4, 3, n_active=3, return_codes=True)[2]
    assert (codes > 0).all()


def test_more_active_than_there_are():
    with pytest.raises(ValueError, match="n_active=5 must be between 1 and nb_concepts=3. Lower"):
        make_activations(nb_concepts=3, n_active=5)
