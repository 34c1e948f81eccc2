"""What the controls promise: what is frozen does not move, whatever computes the step."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sksae import (
    BatchTopKSAE,
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    RandomSAE,
    SoftFrozenSAE,
)
from sksae.datasets import make_activations
from sksae.kernels import _cuda, _ops
from sksae.modules._controls import turned_back

M, D = 40, 12
CONTROLS = (FrozenDecoderSAE, SoftFrozenSAE, FrozenEncoderSAE, RandomSAE)
DECODER_HELD = (FrozenDecoderSAE, RandomSAE)
ENCODER_HELD = (FrozenEncoderSAE, RandomSAE)


@pytest.fixture(scope="module")
def rows():
    X = make_activations(1500, D, 24, n_active=3, noise=0.05, offset=1.0, random_state=0)[0]
    return X.astype(np.float64)


@pytest.fixture(scope="module")
def start():
    """Unit rows to start from."""
    directions = np.random.default_rng(1).standard_normal((M, D)).astype(np.float32)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def control(cls, start=None, **params):
    own = {"top_k": 4, "nb_epochs": 3, "batch_size": 100, "random_state": 0, "device": "cpu"}
    if start is not None:
        own["dictionary_params"] = {"initializer": start}
    return cls(M, **own | params)


def directions(weight):
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)


def check_held(sae, start):
    """Assert that what is to stay at the start is there, and that the rest is not."""
    if isinstance(sae, SoftFrozenSAE):
        cosines = (sae.components_ * start).sum(axis=1)
        assert cosines.min() == pytest.approx(sae.min_cosine, abs=1e-6)
    else:
        held = np.allclose(sae.components_, directions(start), rtol=0, atol=1e-6)
        assert held == isinstance(sae, DECODER_HELD)
    weight = sae.module_.linear_encoder.weight.detach().numpy()
    held = np.allclose(directions(weight), directions(start), rtol=0, atol=1e-6)
    assert held == isinstance(sae, ENCODER_HELD)
    if held:
        norms = np.linalg.norm(weight, axis=1)
        np.testing.assert_allclose(norms, norms[0], rtol=1e-6)
    centered = (sae.module_.decoder_bias - sae.module_.center).abs().max()
    assert centered > 1e-4  # the decoder bias is trained in all of them


@pytest.mark.parametrize("cls", CONTROLS)
@pytest.mark.parametrize("loops", ["numba", "cuda"])
def test_steps_on_stored_codes_are_those_of_plain_torch(cls, loops, rows, start, monkeypatch):
    if loops == "numba":
        pytest.importorskip("numba")
    else:  # what is computed on CUDA devices, in plain torch
        monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
        monkeypatch.setattr(_cuda, "compiled", lambda: None)
    tight = {"min_cosine": 0.97} if cls is SoftFrozenSAE else {}
    aux = {} if cls in ENCODER_HELD else {"dead_after": 100}
    slow, fast = (control(cls, start, backend=b, **tight, **aux) for b in ("reference", "cpu"))
    slow.fit(rows), fast.fit(rows)
    assert fast.backend_.startswith("cpu (stored codes only")
    assert slow.backend_ == "reference (plain torch on cpu: as asked for)"
    for name, value in slow.module_.state_dict().items():
        torch.testing.assert_close(fast.module_.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        fast.transform(rows).toarray(), slow.transform(rows).toarray(), atol=1e-6
    )
    for sae in (slow, fast):
        check_held(sae, start)


@pytest.mark.parametrize("cls", CONTROLS)
@pytest.mark.parametrize(
    "params",
    [
        {"optimizer_class": torch.optim.SGD, "lr": 0.1, "clip_grad": 0.5},
        {"optimizer_params": {"weight_decay": 0.1}},
        {"use_amp": True, "criterion": "dead_neurons_reanimation"},
        {"early_stopping": 1, "monitoring": 5, "k_anneal": 0.5},
    ],
    ids=["sgd", "decay", "bf16", "early"],
)
def test_nothing_moves_what_is_frozen(cls, params, rows, start):
    tight = {"min_cosine": 0.99} if cls is SoftFrozenSAE else {}
    sae = control(cls, start, **params, **tight).fit(rows.astype(np.float32))
    if "optimizer_class" in params and cls is SoftFrozenSAE:
        assert (sae.components_ * start).sum(axis=1).min() > 0.99 - 1e-6
    else:
        check_held(sae, start)
    before = sae.components_
    twin = pickle.loads(pickle.dumps(sae)).partial_fit(rows.astype(np.float32))
    again = sae.partial_fit(rows.astype(np.float32))
    np.testing.assert_array_equal(twin.components_, again.components_)
    if cls in DECODER_HELD:
        np.testing.assert_array_equal(again.components_, before)  # bit by bit
    if cls is SoftFrozenSAE:
        assert (again.components_ * start).sum(axis=1).min() > 0.99 - 1e-6


def test_the_auxiliary_loss_trains_encoder_rows_not_the_frozen_dictionary(rows, start):
    params = {"nb_epochs": 8, "dead_after": 200, "top_k": 2}
    without = control(FrozenDecoderSAE, start, auxk_coefficient=0, **params).fit(rows)
    with_aux = control(FrozenDecoderSAE, start, auxk_coefficient=1.0, **params).fit(rows)
    weights = [sae.module_.linear_encoder.weight.detach() for sae in (without, with_aux)]
    assert not np.allclose(*weights)
    np.testing.assert_array_equal(without.components_, with_aux.components_)


# -- formulas ---------------------------------------------------------------------------------


def test_a_row_is_turned_back_to_the_nearest_vector_at_the_border():
    start = torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=torch.float64)
    rows = torch.tensor([[0.0, 1.0, 0.0], [-0.6, 0.0, -0.8], [-1.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[0.8, 0.6, 0.0], [0.8, 0.0, -0.6], [1.0, 0.0, 0.0]]).double()
    turned = turned_back(rows, start, 0.8)
    torch.testing.assert_close(turned, expected)
    # No unit vector with that cosine is nearer.
    angles = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
    border = torch.stack([0.8 + 0 * angles, 0.6 * angles.cos(), 0.6 * angles.sin()], dim=1)
    for row, found in zip(rows[:2], turned, strict=False):
        assert (found - row).norm() <= (border - row).norm(dim=1).min() + 1e-9


def test_soft_frozen_with_a_cosine_of_one_is_frozen(rows, start):
    soft = control(SoftFrozenSAE, start, min_cosine=1).fit(rows)
    hard = control(FrozenDecoderSAE, start).fit(rows)
    np.testing.assert_allclose(soft.components_, hard.components_, atol=1e-3)
    assert soft.score(rows) == pytest.approx(hard.score(rows), abs=0.02)


def test_codes_of_a_frozen_encoder_are_those_of_its_start_at_the_center(rows, start):
    sae = control(FrozenEncoderSAE, start, nb_epochs=20).fit(rows)
    module = sae.module_
    center = (module.center * module.input_scale).numpy()
    gain = float(module.gain) * sae.encoder_init_norm
    pre_codes = gain * (rows - center) @ start.T
    expected = np.where(pre_codes >= sae.threshold_, pre_codes, 0)
    np.testing.assert_allclose(sae.transform(rows).toarray(), expected, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(module.encode(torch.tensor(rows))[0], pre_codes, atol=1e-6)
    folded = module.fold_normalization()
    with torch.no_grad():
        np.testing.assert_allclose(folded.encode(torch.tensor(rows))[1], expected, atol=1e-6)


def test_gain_and_bias_of_a_random_sae_are_those_of_least_squares(rows, start):
    sae = control(RandomSAE, start, nb_epochs=60, lr=5e-3).fit(rows)
    codes = sae.transform(rows)
    part = codes @ sae.components_
    spread = part - part.mean(axis=0)
    best = (spread * (rows - rows.mean(axis=0))).sum() / (spread**2).sum()
    assert best == pytest.approx(1, abs=0.03)
    offset = rows.mean(axis=0) - part.mean(axis=0)
    np.testing.assert_allclose(sae.decoder_bias_, offset, atol=0.05)


@pytest.mark.parametrize("cls", CONTROLS)
def test_a_start_with_the_covariance_of_the_data(cls):
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 1.0, 1.0, 0.2])
    X = 3.0 + rng.standard_normal((4000, 4)) * spread
    params = {"nb_epochs": 1, "batch_size": 4000, "lr": 1e-9, "top_k": 2, "random_state": 0}
    one = cls(2000, init="covariance", **params).fit(X)
    reference = rng.standard_normal((40_000, 4)) * spread
    expected = (directions(reference) ** 2).mean(axis=0)
    np.testing.assert_allclose((one.components_**2).mean(axis=0), expected, atol=0.03)
    assert np.abs(one.components_.mean(axis=0)).max() < 0.08
    np.testing.assert_array_equal(one.components_, clone(one).fit(X).components_)
    uniform = cls(2000, **params).fit(X)
    np.testing.assert_allclose((uniform.components_**2).mean(axis=0), 0.25, atol=0.03)


def test_a_start_in_data_that_do_not_vary():
    X = np.tile([1.0, 2.0, 3.0], (50, 1))
    sae = FrozenDecoderSAE(8, top_k=2, init="covariance", nb_epochs=1, random_state=0).fit(X)
    np.testing.assert_allclose(np.linalg.norm(sae.components_, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(sae.inverse_transform(sae.transform(X)), X, atol=1e-6)


# -- what they are for ------------------------------------------------------------------------


def test_controls_stay_below_a_trained_sae_in_the_order_of_their_freedom(rows):
    params = {"top_k": 3, "nb_epochs": 25, "batch_size": 100, "random_state": 0}
    trained, frozen, soft, encoder, random = (
        cls(M, **params).fit(rows).score(rows) for cls in (BatchTopKSAE, *CONTROLS)
    )
    assert trained > soft > frozen > random
    assert trained > encoder > random > 0


# -- what they refuse -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ENCODER_HELD)
def test_a_frozen_encoder_takes_no_other_and_revives_nothing(cls, rows):
    with pytest.raises(ValueError, match=f"{cls.__name__} holds the linear encoder at its start"):
        control(cls, encoder_module="mlp_ln_1").fit(rows)
    for params in ({"auxk_coefficient": 0.1}, {"k_aux": 3}):
        with pytest.raises(ValueError, match=f"{cls.__name__} cannot revive dead concepts"):
            control(cls, **params).fit(rows)


def test_dictionary_params_against_what_is_held(rows, start):
    for cls in (FrozenDecoderSAE, SoftFrozenSAE, RandomSAE):
        with pytest.raises(ValueError, match=f"dictionary of {cls.__name__} is held to its start"):
            control(cls, dictionary_params={"use_multiplier": True}).fit(rows)
    with pytest.raises(ValueError, match="Got normalization='max_l2' in dictionary_params"):
        control(SoftFrozenSAE, dictionary_params={"normalization": "max_l2"}).fit(rows)
    for cls in CONTROLS:
        with pytest.raises(ValueError, match="dictionary_params holds an 'initializer' too"):
            control(cls, start, init="covariance").fit(rows)
    control(FrozenEncoderSAE, dictionary_params={"use_multiplier": True}, nb_epochs=1).fit(rows)
    control(FrozenDecoderSAE, encoder_module="mlp_ln_1", nb_epochs=1).fit(rows)


def test_the_start_is_not_drawn_again_by_a_continued_fit(rows):
    sae = control(FrozenDecoderSAE, init="covariance", nb_epochs=1, warm_start=True).fit(rows)
    before = sae.components_
    np.testing.assert_array_equal(sae.fit(rows).components_, before)
    np.testing.assert_array_equal(sae.partial_fit(rows[:50] * 3).components_, before)
    with pytest.raises(ValueError, match="init='random', but this FrozenDecoderSAE was fitted wi"):
        sae.set_params(init="random").fit(rows)
    np.testing.assert_array_equal(sae.components_, before)
    with pytest.raises(ValueError, match="'init' parameter of FrozenDecoderSAE must be a str amo"):
        control(FrozenDecoderSAE, init="pca").fit(rows)


def test_no_warning_of_dead_concepts_where_nothing_can_be_done(rows, recwarn):
    RandomSAE(400, top_k=1, nb_epochs=1, random_state=0).fit(rows[:100])
    assert not [w for w in recwarn if "fired in none" in str(w.message)]
