"""MatryoshkaSAE's concepts in the order of how often they are active: a change of names only."""

import numpy as np
import pytest
import torch

from sksae import MatryoshkaSAE
from sksae.training import _net, _sparsity

M, N_ROWS = 96, 640


@pytest.fixture(scope="module")
def rows():
    """Rows of 24 planted directions, of which the n-th is there with probability 0.5 / n."""
    rng = np.random.RandomState(0)
    directions = rng.standard_normal((24, 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    active = rng.random_sample((N_ROWS, 24)) < 0.5 / np.arange(1, 25)
    return (active * (1 + rng.random_sample(active.shape))) @ directions


def matryoshka(prefixes=(0.25, 1.0), **params):
    shared = {"nb_epochs": 10, "batch_size": 64, "random_state": 0, "device": "cpu"}
    return MatryoshkaSAE(M, top_k=3, prefixes=list(prefixes), **shared | params)


@pytest.fixture
def sorted_at(monkeypatch):
    """Give the list that the steps are written to at which concepts are sorted."""
    steps, sort_concepts = [], _net.sort_concepts

    def watched(net, data):
        steps.append(net.n_steps_)
        sort_concepts(net, data)

    monkeypatch.setattr(_net, "sort_concepts", watched)
    return steps


def frequencies(sae, rows):
    return (sae.transform(rows) != 0).mean(axis=0).A1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "params",
    [
        {"dead_after": 100},
        {"dead_after": 10_000},
        {"optimizer_class": torch.optim.Adafactor, "lr": 0.01},
        {"optimizer_class": torch.optim.SGD, "lr": 0.1, "optimizer_params": {"momentum": 0.9}},
    ],
    ids=["AuxK", "Adam", "Adafactor", "SGD"],
)
def test_nothing_but_the_order_changes(backend, params, rows):
    """Dead concepts and moments go with the weights; a loss without weight has no effect."""
    params = {"prefix_weights": [0, 1], "backend": backend} | params
    plain = matryoshka(sort_at=0, **params).fit(rows)
    renamed = matryoshka(sort_at=0.5, **params).fit(rows)
    for key in ("train_loss", "explained_variance", "l0", "dead_fraction"):
        expected = plain.history_[:, key]
        np.testing.assert_allclose(renamed.history_[:, key], expected, rtol=1e-9)
    # Those that were never active are not told apart by frequency, and may be by rounding.
    cosine = renamed.components_ @ plain.components_.T
    order = cosine.argmax(axis=1)
    assert sorted(order) == list(range(M)) and (order != np.arange(M)).sum() > M / 2
    np.testing.assert_allclose(cosine.max(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(
        renamed.transform(rows).toarray(), plain.transform(rows).toarray()[:, order], atol=1e-9
    )
    moved = [sae.module_.samples_since_fired.numpy() for sae in (renamed, plain)]
    np.testing.assert_array_equal(moved[0], moved[1][order])


@pytest.mark.parametrize(
    ("sort_at", "steps"), [(0.0, []), (0, []), (0.5, [50]), (1.0, []), (50, [50]), (200, [])]
)
def test_when_concepts_are_sorted(sort_at, steps, rows, sorted_at):
    matryoshka(sort_at=sort_at).fit(rows)
    assert sorted_at == steps


def test_by_default_after_a_quarter_of_the_fit(rows, sorted_at):
    matryoshka().fit(rows)
    assert sorted_at == [25] and MatryoshkaSAE().sort_at == 0.25


def test_frequent_concepts_come_first(rows):
    late = frequencies(matryoshka(sort_at=0.9, nb_epochs=20).fit(rows), rows)
    never = frequencies(matryoshka(sort_at=0, nb_epochs=20).fit(rows), rows)
    assert np.corrcoef(np.arange(M), late)[0, 1] < -0.6
    assert late[:6].mean() > never[:6].mean()


def test_concepts_of_a_fit_that_goes_on_keep_their_numbers(rows, sorted_at):
    sae = matryoshka(warm_start=True).fit(rows)
    assert sorted_at
    del sorted_at[:]
    sae.set_params(nb_epochs=100).fit(rows)
    matryoshka().partial_fit(rows).partial_fit(rows)
    matryoshka(sort_at=3).partial_fit(rows)
    assert sorted_at == []


def test_one_prefix_needs_no_order(rows, sorted_at):
    matryoshka(prefixes=[1.0]).fit(rows)
    assert sorted_at == []


def test_a_custom_encoder_is_left_as_it_is(rows, sorted_at):
    sae = matryoshka(encoder_module="mlp_ln_1").fit(rows)
    assert sorted_at == [] and sae.n_steps_ == 100


def test_early_stopping_waits_for_the_order(rows, sorted_at):
    params = {"early_stopping": 1, "lr": 0.05, "scheduler_class": None, "nb_epochs": 40}
    sae = matryoshka(sort_at=0.5, **params).fit(rows)
    assert len(sorted_at) == 1 and sae.n_steps_ > sorted_at[0]
    assert dict(sae.net_.callbacks_)["sksae_early_stopping"].best_epoch_ > 20  # of 40
    never_sorted = matryoshka(sort_at=1.0, **params).fit(rows)
    assert never_sorted.n_iter_ < 40  # nothing to wait for


@pytest.mark.parametrize(
    ("share", "first", "steps"),
    [(0.25, 0, [40]), (0.25, 1, [16 + 21]), (0.1, 1, [10, 16 + 8]), (0.2, 99, [20])],
)
def test_sorted_again_where_training_begins_anew(share, first, steps, rows, sorted_at, monkeypatch):
    """After the same share of the steps that are left, here after steps 20, or 16, of 100."""
    looks = []

    def silent_share(module):
        looks.append(module)
        return (0.5 if len(looks) > first else 0.0) if first else 0.3 * (len(looks) > 2)

    monkeypatch.setattr(_sparsity, "_silent_share", silent_share)
    matryoshka(sort_at=share).fit(rows)
    assert sorted_at == steps


@pytest.mark.parametrize("value", [True, -0.1, 1.5, "auto"])
def test_a_wrong_share(value, rows):
    with pytest.raises(ValueError, match="The 'sort_at' parameter of MatryoshkaSAE"):
        matryoshka(sort_at=value).fit(rows)
