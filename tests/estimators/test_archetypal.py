"""What ArchetypalSAE promises beyond the shared contract."""

import pickle
import re

import numpy as np
import pytest
import torch

from sksae import ArchetypalSAE, TopKSAE
from sksae.datasets import make_activations
from sksae.estimators._candidates import cluster_directions, find_candidates
from sksae.metrics import stability
from sksae.training import RowBatches

QUICK = {"nb_epochs": 3, "batch_size": 128, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 16 features, 4 of 32 planted concepts active in each."""
    return make_activations(2000, 16, 32, n_active=4, noise=0.05, offset=1.0, random_state=0)[0]


def batches(rows):
    return RowBatches(rows, torch.device("cpu"), torch.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clusters_are_found_the_largest_first():
    rng = np.random.RandomState(0)
    centers, sizes = np.eye(4, 10), [400, 300, 200, 100]
    rows = np.repeat(centers, sizes, axis=0) + 0.05 * rng.randn(1000, 10)
    rows = unit(rows[rng.permutation(1000)]).astype(np.float32)
    starts = np.concatenate([rows[[(rows @ c).argmax()]] for c in centers])
    found = cluster_directions(torch.from_numpy(np.concatenate([starts, rows])), 4)
    assert (np.diag(found.numpy() @ centers.T) > 0.99).all()


def test_candidates_depend_on_the_rows_alone(rows):
    one, two = (
        ArchetypalSAE(24, top_k=3, **QUICK | {"random_state": seed}).fit(rows) for seed in (0, 1)
    )
    assert one.points_.shape == (48, 16)
    np.testing.assert_array_equal(one.points_, two.points_)
    np.testing.assert_allclose(np.linalg.norm(one.points_, axis=1), 1, rtol=1e-6)
    assert one.archetype_weights_.shape == (24, 48)
    np.testing.assert_allclose(one.archetype_weights_.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("method", ["random", "kmeans"])
def test_fewer_rows_than_candidates(method, rows):
    found = find_candidates(batches(rows[:7]), 20, method)
    assert found.shape == (7, 16)
    constant = find_candidates(batches(np.full((9, 16), 3.3, dtype=np.float32)), 20, method)
    np.testing.assert_allclose(constant.norm(dim=1), 1, rtol=1e-5)


def test_given_points_are_in_input_units(rows):
    sae = ArchetypalSAE(24, top_k=3, points="random", n_points=30, **QUICK).fit(rows)
    center = batches(rows).statistics.center.numpy()
    points = center + 5 * sae.points_
    again = ArchetypalSAE(24, top_k=3, points=points, **QUICK).fit(rows)
    np.testing.assert_allclose(again.points_, sae.points_, atol=1e-5)
    np.testing.assert_allclose(again.components_, sae.components_, atol=1e-3)
    tensor = ArchetypalSAE(24, top_k=3, points=torch.from_numpy(points), **QUICK).fit(rows)
    np.testing.assert_array_equal(tensor.components_, again.components_)


@pytest.mark.parametrize("delta", [0, 0.2])
def test_concepts_stay_within_delta_of_the_cone_of_the_data(delta, rows):
    sae = ArchetypalSAE(32, top_k=4, delta=delta, **QUICK | {"nb_epochs": 10}).fit(rows)
    archetypes = unit(sae.archetype_weights_ @ sae.points_)
    cosines = (archetypes * sae.components_).sum(axis=1)
    assert cosines.min() >= np.sqrt(1 - delta**2) - 1e-5
    if delta:
        assert cosines.min() < 0.9999  # the relaxation is of use
    moved = unit(sae.points_[:32]) * sae.components_
    assert moved.sum(axis=1).min() < 0.99


def test_wide_fits_run_on_stored_codes(rows):
    fast, slow = (
        ArchetypalSAE(256, top_k=4, n_points=64, device="cpu", backend=b, **QUICK).fit(rows)
        for b in ("auto", "reference")
    )
    assert fast.backend_.startswith("cpu (stored codes only")
    assert slow.backend_ == "reference (plain torch on cpu: as asked for)"
    assert fast.score(rows) == pytest.approx(slow.score(rows), abs=0.01)


def test_copies_keep_the_candidates_and_go_on(rows):
    sae = ArchetypalSAE(24, top_k=3, **QUICK).partial_fit(rows[:500])
    twin = pickle.loads(pickle.dumps(sae))
    for each in (sae, twin):
        each.partial_fit(rows[500:])
    np.testing.assert_array_equal(twin.components_, sae.components_)
    np.testing.assert_array_equal(twin.points_, sae.points_)


def test_a_continued_fit_takes_another_delta_but_no_other_points(rows):
    sae = ArchetypalSAE(24, top_k=3, warm_start=True, **QUICK).fit(rows)
    sae.set_params(delta=0.0).fit(rows)
    archetypes = unit(sae.archetype_weights_ @ sae.points_)
    np.testing.assert_allclose(sae.components_, archetypes, atol=1e-5)
    with pytest.raises(ValueError, match="n_points=30, but this ArchetypalSAE was fitted with No"):
        sae.set_params(n_points=30).fit(rows)
    with pytest.raises(ValueError, match="points='random', but this ArchetypalSAE was fitted with"):
        sae.set_params(n_points=None, points="random").fit(rows)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"delta": 1.0}, "The 'delta' parameter of ArchetypalSAE must be a float in the range"),
        ({"points": "corners"}, "The 'points' parameter of ArchetypalSAE must be a str among"),
        (
            {"points": np.ones((4, 3))},
            "The 'points' parameter of ArchetypalSAE must be 'kmeans', 'random', or finite numbers "
            "of shape (n_points, n_features=16). Got shape (4, 3) of float64.",
        ),
        ({"points": np.full((4, 16), np.nan)}, "or finite numbers of shape"),
        (
            {"points": np.ones((4, 16)), "n_points": 9},
            "n_points=9 has nothing to act on in ArchetypalSAE: its 'points' are given.",
        ),
        (
            {"dictionary_params": {"normalization": "l1"}},
            "has nothing to act on in ArchetypalSAE: its dictionary is made of candidates from the",
        ),
    ],
)
def test_wrong_parameters(params, message, rows):
    with pytest.raises(ValueError, match=re.escape(message)):
        ArchetypalSAE(32, top_k=3, **params).fit(rows)


def test_a_point_at_the_center_has_no_direction(rows):
    center = batches(rows).statistics.center.numpy()
    points = np.concatenate([rows[:9], center[None]])
    with pytest.raises(ValueError, match="^1 of the 10 'points' of ArchetypalSAE lie at"):
        ArchetypalSAE(32, top_k=3, points=points).fit(rows)


def test_seeds_agree_more_than_those_of_topk_and_recover_no_less():
    """On concepts too many to be found in full; a shared start is a part of it, not all."""
    X, dictionary = make_activations(
        6000, 32, 96, n_active=6, offset=1.0, noise=0.2, random_state=0
    )
    params = {"nb_epochs": 10, "batch_size": 256, "top_k": 6}
    agreement, recovery = {}, {}
    for cls in (TopKSAE, ArchetypalSAE):
        found = [cls(128, random_state=s, **params).fit(X).components_ for s in (0, 1)]
        agreement[cls] = stability(found)
        recovery[cls] = (dictionary @ found[0].T).max(axis=1).mean()
    assert agreement[ArchetypalSAE] > agreement[TopKSAE] + 0.15
    assert recovery[ArchetypalSAE] > recovery[TopKSAE] - 0.02
