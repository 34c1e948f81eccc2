"""Fitting: what it learns, that it repeats, survives copying, continues and stops."""

import copy
import io
import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from sksae import JumpReLUSAE, MatchingPursuitSAE, TopKSAE, VanillaSAE
from sksae.losses import dead_neurons_reanimation
from sksae.metrics import explained_variance
from sksae.modules import load_overcomplete_sae
from sksae.training import _data


def absolute_error(x, x_hat, pre_codes, codes, dictionary):
    return (x - x_hat).abs().mean()


def codes_of(sae, X):
    return sae.transform(X).toarray()


def test_positional_width():
    assert TopKSAE(4096).nb_concepts == 4096


def test_signature_spells_out_the_shared_parameters(sae_cls):
    import inspect

    names = list(inspect.signature(sae_cls).parameters)
    assert names[0] == "nb_concepts"
    assert {"encoder_module", "lr", "random_state"} < set(names)
    assert set(names) == set(sae_cls().get_params())


def test_contract_of_codes_and_components(make, X):
    sae = make(nb_epochs=5).fit(X)
    np.testing.assert_allclose(np.linalg.norm(sae.components_, axis=1), 1, rtol=1e-6)
    codes = sae.transform(X)
    back = sae.inverse_transform(codes)
    np.testing.assert_allclose(
        back, codes.toarray() @ sae.components_ + sae.decoder_bias_, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(sae.inverse_transform(codes.toarray()), back, rtol=1e-5, atol=1e-5)
    assert sae.score(X) == pytest.approx(explained_variance(X, back), abs=1e-6)


def test_history_and_diagnostics(make, X):
    sae = make(nb_epochs=3).fit(X)
    for key in ("train_loss", "explained_variance", "l0", "dead_fraction", "dur"):
        assert np.isfinite(sae.history_[:, key]).all()
    assert np.isnan(sae.history_[:, "valid_loss"]).all()
    assert sae.n_iter_ == 3
    assert sae.n_steps_ == 3 * 8
    assert sae.backend_.startswith("reference")
    codes = sae.transform(X)
    assert sae.l0_ == pytest.approx(codes.nnz / len(X))
    assert 0 <= sae.dead_fraction_ <= 1


def test_training_lowers_the_loss(make, X):
    loss = make(nb_epochs=15).fit(X).history_[:, "train_loss"]
    assert loss[-1] < 0.7 * loss[0]


def test_same_seed_same_bits_and_global_generators_untouched(make, X):
    torch.manual_seed(5)
    np.random.seed(5)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = make(nb_epochs=3).fit(X)
    two = make(nb_epochs=3).fit(X)
    other = make(nb_epochs=3, random_state=1).fit(X)
    for attribute in ("components_", "decoder_bias_"):
        np.testing.assert_array_equal(getattr(one, attribute), getattr(two, attribute))
    np.testing.assert_array_equal(codes_of(one, X), codes_of(two, X))
    assert not np.array_equal(one.components_, other.components_)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)


def through_joblib(sae):
    buffer = io.BytesIO()
    joblib.dump(sae, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


@pytest.mark.parametrize(
    "copied",
    [
        lambda sae: pickle.loads(pickle.dumps(sae)),
        copy.deepcopy,
        through_joblib,
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_copies_give_equal_codes_and_keep_training(make, X, copied):
    sae = make().fit(X)
    twin = copied(sae)
    np.testing.assert_array_equal(codes_of(twin, X), codes_of(sae, X))
    np.testing.assert_array_equal(
        twin.inverse_transform(codes_of(sae, X)), sae.inverse_transform(codes_of(sae, X))
    )
    if hasattr(sae, "threshold_"):
        np.testing.assert_array_equal(twin.threshold_, sae.threshold_)
    sae.partial_fit(X)
    twin.partial_fit(X)
    np.testing.assert_array_equal(twin.components_, sae.components_)


def test_clone_refits_to_equal_codes(make, X):
    sae = make().fit(X)
    twin = clone(sae)
    assert not hasattr(twin, "net_")
    np.testing.assert_array_equal(codes_of(twin.fit(X), X), codes_of(sae, X))


def test_state_dict_carries_everything_that_encodes(make, X):
    sae, other = make().fit(X), make(random_state=1).fit(X)
    other.module_.load_state_dict(sae.module_.state_dict())
    np.testing.assert_array_equal(codes_of(other, X), codes_of(sae, X))
    np.testing.assert_array_equal(other.components_, sae.components_)


def test_pickle_does_not_hold_the_data(make, X):
    rows = np.tile(X, (40, 1))
    assert len(pickle.dumps(make(nb_epochs=1, validation_fraction=0.5).fit(rows))) < rows.nbytes / 3


def test_rows_do_not_depend_on_their_batch(make, X):
    sae = make().fit(X)
    together = codes_of(sae, X)
    alone = np.concatenate([codes_of(sae, X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(codes_of(sae, X[::-1]), together[::-1], rtol=1e-5, atol=1e-6)


def test_blocks_of_transform_do_not_show(make, X, monkeypatch):
    sae = make().fit(X)
    whole, dense_sae = codes_of(sae, X), copy.deepcopy(sae).set_params(sparse_output=False)
    score = sae.score(X)
    monkeypatch.setitem(_data._BLOCK_BYTES, "cpu", 7 * 24 * 4)
    np.testing.assert_allclose(codes_of(sae, X), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense_sae.transform(X), whole, rtol=1e-5, atol=1e-6)
    assert sae.score(X) == pytest.approx(score, abs=1e-6)


def test_tensors_are_differentiable_both_ways(make, X):
    sae = make().fit(X)
    x = torch.from_numpy(X[:5]).requires_grad_()
    codes = sae.encode(x)
    np.testing.assert_allclose(codes.detach().numpy(), codes_of(sae, X[:5]), rtol=1e-5, atol=1e-6)
    sae.decode(codes).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert sae.has_differentiable_concept_encoder
    assert sae.has_differentiable_concept_decoder
    assert sae.get_dictionary().shape == (24, 12)
    with torch.no_grad():  # from stored codes alone
        again = sae.encode(x)
        assert sae.encode(x[:0]).shape == (0, 24)
    assert again.dtype == codes.dtype and not again.requires_grad
    torch.testing.assert_close(again, codes.detach(), rtol=1e-5, atol=1e-6)


def test_without_gradients_codes_are_those_with_them():
    """Of wide dictionaries, whose codes are made of stored ones, unless that cannot be."""
    rows = torch.randn(100, 16)
    for cls, k in ((TopKSAE, {"top_k": 4}), (JumpReLUSAE, {}), (VanillaSAE, {})):
        sae = cls(300, device="cpu", random_state=0, nb_epochs=1, **k).fit(rows)
        wrong = rows.clone()
        wrong[3, 5] = torch.nan
        for x in (rows, rows[:5], wrong):
            with torch.no_grad():
                codes = sae.encode(x)
            torch.testing.assert_close(codes, sae.encode(x).detach(), equal_nan=True)
        sae.module_.to(torch.bfloat16)
        with torch.no_grad():
            assert sae.encode(rows).isfinite().all()


def test_tensors_of_the_wrong_kind(make, X):
    sae = make().fit(X)
    name = type(sae).__name__
    with pytest.raises(TypeError, match=f"x must be a torch.Tensor, got ndarray. .* of {name}."):
        sae.encode(X)
    with pytest.raises(ValueError, match=f"z must have 24 columns for this {name}, got shape"):
        sae.decode(torch.zeros(2, 5))
    for x in (torch.zeros(2, 3, 12), torch.zeros(12)):
        with pytest.raises(ValueError, match=rf"{name} encodes x of shape \(n, 12\), got shape"):
            sae.encode(x)


# -- surroundings -------------------------------------------------------------------------


def test_the_callers_torch_contexts_do_not_leak_in(make, X):
    expected = make().fit(X)
    codes, score = codes_of(expected, X), expected.score(X)
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            sae = make().fit(X)
            np.testing.assert_array_equal(codes_of(sae, X), codes)
            assert sae.score(X) == score


def test_fits_in_threads_are_those_of_one_after_the_other(make, X):
    def fit(seed):
        return make(random_state=seed).fit(X).components_

    torch.manual_seed(5)
    before = torch.get_rng_state()
    expected = [fit(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, range(4)))
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_numpy_scalars_as_parameters(make, X):
    sae = make(
        nb_concepts=np.int64(16),
        nb_epochs=np.int32(1),
        batch_size=np.int64(50),
        lr=np.float32(1e-3),
        validation_fraction=np.float64(0.2),
        monitoring=np.int64(2),
        verbose=np.int64(0),
    ).fit(X)
    assert sae.transform(X).shape == (500, 16)


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_score_in_extreme_units(make, X, scale):
    sae = make().fit(X.astype(np.float64))
    assert make().fit(scale * X).score(scale * X) == pytest.approx(sae.score(X), abs=1e-2)


def test_constant_data_that_is_not_exact_in_binary(make):
    X = np.full((37, 5), 3.3)
    sae = make().fit(X)
    assert (sae.module_.input_scale == 1).all()
    np.testing.assert_allclose(sae.inverse_transform(sae.transform(X)), X, rtol=1e-2)
    assert 0 <= sae.score(X) <= 1


def test_wide_sparse_input_is_not_made_dense_at_once():
    X = sparse.random(3000, 10_000, density=1e-3, format="csr", dtype=np.float32, random_state=0)
    tracemalloc.start()
    sae = TopKSAE(8, top_k=2, nb_epochs=1, random_state=0).fit(X)
    sae.transform(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.shape[0] * X.shape[1] * 4


# -- continuing ---------------------------------------------------------------------------


def test_fit_starts_anew_and_warm_start_continues(make, X):
    sae = make().fit(X)
    first = sae.components_
    np.testing.assert_array_equal(sae.fit(X).components_, first)
    sae.set_params(warm_start=True).fit(X)
    assert sae.n_iter_ == 4
    assert sae.n_steps_ == 32
    assert not np.array_equal(sae.components_, first)


@pytest.mark.parametrize(
    "change", [{"nb_concepts": 30}, {"encoder_module": "linear"}, {"dictionary_params": {}}]
)
def test_warm_start_refuses_another_structure(make, X, change):
    sae = make(warm_start=True).fit(X)
    before = sae.get_params()
    sae.set_params(**change)
    ((name, value),) = change.items()
    message = (
        f"{name}={value!r}, but this {type(sae).__name__} was fitted with {before[name]!r}. Set "
        "warm_start=False and call fit to start anew."
    )
    if name == "encoder_module" and type(sae) is MatchingPursuitSAE:
        message = "encoder_module='linear' has nothing to act on in MatchingPursuitSAE"
    for method in (sae.fit, sae.partial_fit):
        with pytest.raises(ValueError, match=re.escape(message)):
            method(X)
    if "nothing to act on" not in message:
        assert sae.set_params(warm_start=False).fit(X).n_iter_ == 2


def test_warm_start_takes_the_new_parameters(make, X):
    sae = make(warm_start=True).fit(X)
    adam = sae.net_.optimizer_
    sae.set_params(lr=1e-12, scheduler_class=None, batch_size=500)
    sae.set_params(criterion="dead_neurons_reanimation").fit(X)
    assert sae.net_.optimizer_ is adam
    assert adam.param_groups[0]["lr"] == 1e-12
    assert sae.n_steps_ == 2 * 8 + 2
    assert sae.net_.criterion_.reconstruction is dead_neurons_reanimation
    sae.set_params(optimizer_class=torch.optim.SGD, optimizer_params={"momentum": 0.5}).fit(X)
    assert isinstance(sae.net_.optimizer_, torch.optim.SGD)
    assert sae.n_steps_ == 2 * 8 + 4


def test_warm_start_takes_the_variants_own_parameters(X):
    sae = TopKSAE(24, top_k=3, warm_start=True, nb_epochs=1, random_state=0).fit(X)
    assert sae.set_params(top_k=2).fit(X).transform(X).getnnz(axis=1).max() == 2
    sae = VanillaSAE(24, warm_start=True, nb_epochs=1, random_state=0).fit(X)
    ((coefficient, _),) = sae.set_params(l1_coefficient=9.0).fit(X).net_.criterion_.terms
    assert coefficient == 9.0


def test_partial_fit_keeps_units_and_counts(make, X):
    sae = make().partial_fit(X)
    scale = sae.module_.input_scale.clone()
    assert sae.n_iter_ == 1
    sae.partial_fit(100 * X[:70])
    assert torch.equal(sae.module_.input_scale, scale)
    assert sae.n_iter_ == 2
    assert sae.n_steps_ == 8 + 2
    sae.partial_fit(X[:1])
    assert sae.n_iter_ == 3


def test_partial_fit_learns_over_chunks(make, X):
    sae = make()
    for epoch in range(12):
        for start in range(0, 500, 100):
            sae.partial_fit(X[start : start + 100])
        if epoch == 0:
            early = sae.score(X)
    assert sae.score(X) > early


@pytest.mark.parametrize("copied", [lambda sae: pickle.loads(pickle.dumps(sae)), copy.deepcopy])
@pytest.mark.parametrize(
    "structure",
    [
        {"encoder_module": "linear"},
        {"dictionary_params": {"initializer": np.eye(24, 12) + 1}},
        {"encoder_module": load_overcomplete_sae().MLPEncoder(12, 24, nb_blocks=0)},
        {"criterion": absolute_error},
    ],
    ids=lambda s: next(iter(s)),
)
def test_copies_with_structure_continue(X, structure, copied):
    sae = TopKSAE(24, top_k=3, nb_epochs=1, random_state=0, **structure).fit(X)
    twin = copied(sae).partial_fit(X)
    np.testing.assert_array_equal(twin.components_, sae.partial_fit(X).components_)
    if "dictionary_params" in structure:
        equal = {"initializer": structure["dictionary_params"]["initializer"].copy()}
        twin.set_params(dictionary_params=equal).partial_fit(X)


def test_held_out_rows_stay_held_out(make, X):
    sae = make(random_state=None, validation_fraction=0.2).fit(X)
    splits = []
    split, sae._split = sae._split, lambda *args: splits.append(split(*args)) or splits[-1]
    sae.partial_fit(X).partial_fit(X)
    np.testing.assert_array_equal(splits[0][1], splits[1][1])


# -- stopping -----------------------------------------------------------------------------


class PressCtrlC:
    """A criterion during which a person presses Ctrl-C at the n-th batch."""

    def __init__(self, at):
        self.left = at

    def __call__(self, x, x_hat, pre_codes, codes, dictionary):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return (x - x_hat).square().mean()


@pytest.mark.parametrize("at", [1, 13])
def test_ctrl_c_is_raised_again_and_leaves_a_usable_estimator(make, X, at):
    sae = make(criterion=PressCtrlC(at))
    with pytest.raises(KeyboardInterrupt):
        sae.fit(X)
    assert sae.n_steps_ == at - 1
    assert sae.n_iter_ == len(sae.history_) == (at - 1) // 8
    assert np.isfinite(sae.score(X))
    assert sae.transform(X).shape == (500, 24)
    pickle.loads(pickle.dumps(sae)).transform(X)
    sae.partial_fit(X)


def test_a_failed_fit_leaves_no_half_fitted_estimator(make, X):
    def broken(x, x_hat, pre_codes, codes, dictionary):
        raise RuntimeError("broken criterion")

    sae = make(criterion=broken)
    with pytest.raises(RuntimeError, match="broken criterion"):
        sae.fit(X)
    assert not hasattr(sae, "components_")


def test_a_refused_fit_leaves_the_last_one_as_it_was(make, X):
    sae = make().fit(X)
    codes = codes_of(sae, X)
    with pytest.raises(ValueError, match="takes the keys initializer|has nothing to act on"):
        sae.set_params(dictionary_params={"bogus": 1}).fit(X[:, :8])
    assert sae.n_features_in_ == 12
    np.testing.assert_array_equal(codes_of(sae, X), codes)


# -- model selection ----------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search(make, X, n_jobs):
    grid = {"nb_concepts": [8, 24], "lr": [1e-4, 3e-3]}
    search = GridSearchCV(make(nb_epochs=4), grid, cv=KFold(2), n_jobs=n_jobs).fit(X)
    assert search.best_params_["lr"] == 3e-3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_halving_search(X):
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    search = HalvingGridSearchCV(
        TopKSAE(16, top_k=3, batch_size=64, random_state=0),
        {"lr": [1e-5, 3e-3]},
        resource="nb_epochs",
        max_resources=4,
        min_resources=1,
        cv=2,
        random_state=0,
    ).fit(X)
    assert search.best_params_["lr"] == 3e-3
