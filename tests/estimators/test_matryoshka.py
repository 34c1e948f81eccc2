"""What MatryoshkaSAE promises: nested dictionaries, general concepts first."""

import re

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone

from sksae import BatchTopKSAE, MatryoshkaSAE
from sksae.activations import Rows
from sksae.activations._rows import with_rows
from sksae.datasets import make_activations
from sksae.metrics import explained_variance

QUICK = {"nb_epochs": 2, "batch_size": 200, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """3,000 rows of 16 features, 3 of 64 planted concepts active in each."""
    return make_activations(3000, 16, 64, n_active=3, noise=0.05, offset=1.0, random_state=0)[0]


@pytest.fixture(scope="module")
def nested(rows):
    return MatryoshkaSAE(64, top_k=4, nb_epochs=20, batch_size=200, random_state=0).fit(rows)


def trees(n, seed=0):
    """Rows that are sums of 4 parents, each mostly with one of its 4 children."""
    rng = np.random.RandomState(seed)
    directions = rng.standard_normal((20, 24))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    parents, children = directions[:4], directions[4:].reshape(4, 4, 24)
    present = rng.random_sample((n, 4)) < 0.3
    X = present @ parents
    for p in range(4):
        with_child = present[:, p] & (rng.random_sample(n) < 0.8)
        X += with_child[:, None] * children[p, rng.randint(4, size=n)]
    return X.astype(np.float32), parents


def cosines(directions, components):
    return (directions @ components.T).max(axis=1)


def test_parents_come_first_and_are_not_absorbed_by_their_children():
    X, parents = trees(5000)
    params = {"top_k": 2, "nb_epochs": 30, "batch_size": 250, "random_state": 0}
    nested = MatryoshkaSAE(20, prefixes=[4, 20], **params).fit(X)
    plain = BatchTopKSAE(20, **params).fit(X)
    assert (cosines(parents, nested.components_[:4]) > 0.9).all()
    assert cosines(parents, plain.components_).min() < 0.85  # its parents lean to children
    assert plain.score(X) > nested.score(X)  # the price


def test_each_prefix_explains_more_than_as_many_random_concepts(nested, rows):
    codes = nested.transform(rows)
    explained = [explained_variance(rows, nested.inverse_transform(codes, m)) for m in (4, 8, 16)]
    assert explained[0] > 0.15
    for m, value in zip((4, 8, 16), explained, strict=True):
        for seed in range(10):
            chosen = np.isin(np.arange(64), np.random.RandomState(seed).permutation(64)[:m])
            some = sparse.csr_matrix(codes.multiply(chosen).astype(np.float32))
            assert value > explained_variance(rows, nested.inverse_transform(some)) + 0.1


def test_prefixes_cost_little_of_the_whole(nested, rows):
    plain = BatchTopKSAE(64, top_k=4, nb_epochs=20, batch_size=200, random_state=0).fit(rows)
    assert nested.l0_ == pytest.approx(4, rel=0.03)
    assert nested.score(rows) > plain.score(rows) - 0.08


# -- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 30, 64])
def test_a_prefix_decodes_alone(nested, rows, n):
    codes = nested.transform(rows[:50])
    dense = codes.toarray()
    expected = dense[:, :n] @ nested.components_[:n] + nested.decoder_bias_
    for Z in (codes, dense, torch.from_numpy(dense), dense.tolist()):
        back = nested.inverse_transform(Z, n_prefix=n)
        np.testing.assert_allclose(back, expected, atol=1e-5)
    assert nested.inverse_transform(codes, n).dtype == np.float32
    np.testing.assert_allclose(nested.inverse_transform(codes, 64), nested.inverse_transform(codes))


def test_decoding_a_prefix_keeps_rows(nested, rows):
    texts = np.arange(50) // 5
    known = Rows(texts, texts * 0, texts * 0 + 1, ["ab"] * 10)
    codes = nested.transform(with_rows(rows[:50], known))
    np.testing.assert_array_equal(nested.inverse_transform(codes, 8).rows.text, texts)


@pytest.mark.parametrize("n", [0, 65, 2.5, True, "8"])
def test_a_prefix_is_a_number_of_concepts(nested, rows, n):
    message = f"n_prefix must be None or an int from 1 to nb_concepts=64. Got {n!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        nested.inverse_transform(nested.transform(rows[:2]), n)


def test_decoding_needs_all_codes(nested):
    with pytest.raises(ValueError, match="Z has 8 columns, but MatryoshkaSAE has 64 concepts"):
        nested.inverse_transform(np.ones((2, 8), dtype=np.float32), 8)


# -- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nb_concepts", "prefixes", "expected"),
    [
        (64, None, [4, 8, 16, 32, 64]),
        (4096, None, [256, 512, 1024, 2048, 4096]),
        (20, None, [1, 2, 5, 10, 20]),
        (3, None, [1, 2, 3]),
        (1, None, [1]),
        (64, [1 / 32, 0.5, 1.0], [2, 32, 64]),
        (64, np.array([0.001, 1.0]), [1, 64]),
        (64, (5, 64), [5, 64]),
        (64, np.array([5, 64]), [5, 64]),
        (64, [3, 0.5, np.float32(1)], [3, 32, 64]),
        (64, [64], [64]),
    ],
)
def test_prefixes_are_sizes_or_shares(nb_concepts, prefixes, expected, rows):
    sae = MatryoshkaSAE(nb_concepts, top_k=1, prefixes=prefixes, nb_epochs=1, auxk_coefficient=0)
    module, own = sae._module()
    assert list(own["prefixes"]) == expected
    if nb_concepts < 10:
        assert sae.set_params(random_state=0).fit(rows[:100]).prefixes_.tolist() == expected


@pytest.mark.parametrize(
    "prefixes",
    [[], [32], [0, 64], [32, 16, 64], [16, 16, 64], [0.001, 1, 64], [32, 128], [True, 64]],
)
def test_wrong_prefixes(prefixes, rows):
    message = (
        "The 'prefixes' parameter of MatryoshkaSAE must be None or ascending numbers of concepts "
        "(ints) or shares of them (floats up to 1.0) that differ by a concept at least and end at "
        f"the whole dictionary. Got {prefixes!r} for nb_concepts=64. End it with 64 or 1.0, or set "
        "prefixes=None."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        MatryoshkaSAE(64, top_k=4, prefixes=prefixes).fit(rows)


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 0], [-1, 1, 1], [1, np.inf, 1], ["a", 1, 1]])
def test_wrong_prefix_weights(weights, rows):
    message = (
        "The 'prefix_weights' parameter of MatryoshkaSAE must be None or one non-negative number "
        "for each of the 3 prefixes (4, 16, 64), the last one positive. Got "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        MatryoshkaSAE(64, top_k=4, prefixes=[4, 16, 64], prefix_weights=weights).fit(rows)


@pytest.mark.parametrize("params", [{"prefixes": "half"}, {"prefix_weights": 2.0}, {"top_k": 0}])
def test_parameters_of_another_kind(params, rows):
    (name,) = params
    with pytest.raises(ValueError, match=f"The '{name}' parameter of MatryoshkaSAE must be"):
        MatryoshkaSAE(64, **params).fit(rows)


def test_top_k_counts_the_whole_dictionary(rows):
    with pytest.raises(ValueError, match="top_k=65 exceeds nb_concepts=64 in MatryoshkaSAE."):
        MatryoshkaSAE(64, top_k=65).fit(rows)
    MatryoshkaSAE(64, top_k=6, prefixes=[2, 64], **QUICK).fit(rows)


def test_only_ratios_of_weights_matter(rows):
    params = {"top_k": 4, "prefixes": [8, 64], **QUICK}
    one, two, other = (
        MatryoshkaSAE(64, prefix_weights=w, **params).fit(rows) for w in ([1, 2], [2, 4.0], [9, 1])
    )
    np.testing.assert_array_equal(one.components_, two.components_)
    assert not np.allclose(one.components_, other.components_)


@pytest.mark.parametrize("params", [{"prefixes": [1.0]}, {"prefix_weights": [0, 0, 0, 0, 3]}])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_without_prefixes_it_is_batchtopk(params, backend, rows):
    shared = {"top_k": 4, "backend": backend, **QUICK}
    nested = MatryoshkaSAE(64, sort_at=0, **params, **shared)
    plain = BatchTopKSAE(64, **shared)
    X = rows.astype(np.float64)
    np.testing.assert_allclose(nested.fit(X).components_, plain.fit(X).components_, atol=1e-10)
    assert nested.threshold_ == pytest.approx(plain.threshold_)
    assert nested.history_[:, "train_loss"] == pytest.approx(plain.history_[:, "train_loss"])


def test_the_history_holds_the_sum_over_prefixes(rows):
    """A step too small to move anything: the loss is that of the start, over all rows at once."""
    params = {"top_k": 4, "nb_epochs": 1, "batch_size": 3000, "lr": 1e-12, "random_state": 0}
    sae = MatryoshkaSAE(64, prefixes=[8, 64], prefix_weights=[3, 1], **params).fit(rows)
    module = sae.module_.train()
    u = module.pull_in(torch.from_numpy(rows) / module.input_scale)
    _, codes, u_hat, dictionary = module.forward_scaled(u)
    first = codes[:, :8] @ dictionary[:8] + module.decoder_bias
    expected = (u - u_hat).square().mean() + 3 * (u - first).square().mean()
    assert sae.history_[-1]["train_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_fit_goes_on_with_other_prefixes(rows):
    fits = []
    for backend in ("reference", "cpu"):
        params = {"top_k": 4, "warm_start": True, "backend": backend, "device": "cpu"}
        sae = MatryoshkaSAE(64, prefixes=[32, 64], **params, **QUICK).fit(rows.astype(float))
        for prefixes in ([4, 16, 64], [2, 8, 64]):
            sae.set_params(prefixes=prefixes, prefix_weights=[1, 1, 2]).fit(rows.astype(float))
            fits.append(sae.components_)
    np.testing.assert_allclose(fits[0], fits[2], atol=1e-6)
    np.testing.assert_allclose(fits[1], fits[3], atol=1e-6)
    sae.set_params(prefixes=[4, 16, 64]).fit(rows)
    assert sae.prefixes_.tolist() == [4, 16, 64]
    assert sae.module_.prefix_weights == (0.5, 0.5, 1.0)
    twin = clone(sae)
    assert twin.prefixes == [4, 16, 64] and not hasattr(twin, "net_")


def test_amp_and_validation_use_all_prefixes(rows):
    sae = MatryoshkaSAE(64, top_k=4, use_amp=True, validation_fraction=0.2, **QUICK).fit(rows)
    assert "use_amp" in sae.backend_
    last = sae.history_[-1]
    assert last["valid_loss"] == pytest.approx(last["train_loss"], rel=0.2)
