"""What each variant promises beyond the shared contract."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from sksae import BatchTopKSAE, JumpReLUSAE, TopKSAE, VanillaSAE
from sksae.datasets import make_activations
from sksae.modules import load_overcomplete_sae

QUICK = {"nb_epochs": 3, "batch_size": 128, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 16 features, 4 of 32 planted concepts active in each."""
    return make_activations(2000, 16, 32, n_active=4, noise=0.05, random_state=0)[0]


def raises(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE])
def test_top_k_above_nb_concepts(cls, rows):
    with raises(
        f"top_k=64 exceeds nb_concepts=32 in {cls.__name__}. Lower top_k or raise nb_concepts."
    ):
        cls(32, top_k=64).fit(rows)


@pytest.mark.parametrize(
    ("sae", "parameter"),
    [
        (TopKSAE(top_k=0), "top_k"),
        (BatchTopKSAE(top_k=2.5), "top_k"),
        (BatchTopKSAE(threshold_momentum=1.0), "threshold_momentum"),
        (VanillaSAE(l1_coefficient=-1), "l1_coefficient"),
        (JumpReLUSAE(l0_coefficient=-1), "l0_coefficient"),
        (JumpReLUSAE(bandwidth=0), "bandwidth"),
        (JumpReLUSAE(kernel="box"), "kernel"),
    ],
)
def test_own_parameters_are_checked(sae, parameter, rows):
    with raises(f"The '{parameter}' parameter of {type(sae).__name__} must be"):
        sae.fit(rows)


def test_topk_has_at_most_k_codes_in_each_row(rows):
    codes = TopKSAE(64, top_k=5, **QUICK).fit(rows).transform(rows)
    assert codes.getnnz(axis=1).max() == 5
    assert codes.data.min() > 0


def test_batchtopk_has_k_codes_on_average(rows):
    sae = BatchTopKSAE(64, top_k=5, **QUICK | {"nb_epochs": 15}).fit(rows)
    per_row = sae.transform(rows).getnnz(axis=1)
    assert per_row.mean() == pytest.approx(5, rel=0.05)
    assert per_row.std() > 0.5
    assert sae.l0_ == pytest.approx(per_row.mean())
    assert sae.history_[-1]["l0"] == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("n", [300, 1000, 2000])
def test_batchtopk_keeps_its_budget_in_short_fits(rows, n):
    sae = BatchTopKSAE(64, top_k=8, random_state=0).fit(rows[:n])
    assert sae.l0_ == pytest.approx(8, rel=0.03)


def test_batchtopk_threshold_is_the_smallest_code(rows):
    sae = BatchTopKSAE(64, top_k=5, **QUICK).fit(rows)
    smallest = sae.transform(rows).data.min()
    assert sae.threshold_ <= smallest < 1.1 * sae.threshold_


def test_jumprelu_threshold_bounds_every_code(rows):
    sae = JumpReLUSAE(64, **QUICK).fit(rows)
    codes = sae.transform(rows).tocoo()
    assert (codes.data > sae.threshold_[codes.col] * (1 - 1e-6)).all()
    moved = np.ptp(np.log(sae.threshold_))
    assert moved > 0


@pytest.mark.parametrize(
    ("cls", "coefficient", "values"),
    [(VanillaSAE, "l1_coefficient", (0, 2, 5)), (JumpReLUSAE, "l0_coefficient", (0, 0.01, 0.1))],
)
def test_the_penalty_makes_codes_sparse(cls, coefficient, values, rows):
    params = QUICK | {"nb_epochs": 20}
    l0 = [cls(64, **params, **{coefficient: value}).fit(rows).l0_ for value in values]
    assert l0[0] > l0[1] > l0[2]
    assert l0[0] > 3 * l0[2]


@pytest.mark.parametrize("cls", [VanillaSAE, JumpReLUSAE])
def test_default_penalty_is_on(cls, rows):
    sae = cls(64, **QUICK).fit(rows)
    ((coefficient, _),) = sae.net_.criterion_.terms
    assert coefficient > 0


# -- encoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "mlp_ln_1", "mlp_ln_3", "mlp_bn_1", "mlp_bn_3"])
def test_registered_encoders(name, rows):
    sae = TopKSAE(32, top_k=4, encoder_module=name, **QUICK).fit(rows)
    assert np.isfinite(sae.score(rows))
    alone = sae.transform(rows[:1]).toarray()
    np.testing.assert_allclose(alone, sae.transform(rows[:9]).toarray()[:1], rtol=1e-4, atol=1e-5)


def test_batch_norm_encoder_with_a_last_batch_of_one_row(rows):
    TopKSAE(32, top_k=4, encoder_module="mlp_bn_1", **QUICK).fit(rows[:129])


def test_identity_encoder_needs_as_many_concepts_as_features(rows):
    TopKSAE(16, top_k=4, encoder_module="identity", **QUICK).fit(rows)
    with raises(
        "The 'encoder_module' of TopKSAE must give a tuple (pre_codes, codes), each of shape "
        "(n, nb_concepts) = (2, 32), for input of shape (2, 16). Got [(2, 16), (2, 16)]."
    ):
        TopKSAE(32, top_k=4, encoder_module="identity", **QUICK).fit(rows)


@pytest.mark.parametrize("name", ["resnet_1b", "attention_3b", "transformer"])
def test_encoders_that_do_not_take_vectors_are_refused(name, rows):
    with raises(
        "The 'encoder_module' parameter of TopKSAE must be None, a torch.nn.Module, or an encoder "
        "of vectors that is registered with overcomplete: identity, linear, mlp_ln_1, mlp_ln_3, "
        f"mlp_bn_1, mlp_bn_3. Got '{name}' instead."
    ):
        TopKSAE(32, top_k=4, encoder_module=name).fit(rows)


def test_an_encoder_class_is_refused(rows):
    with raises("The 'encoder_module' parameter of TopKSAE must be None, an instance of 'str' or"):
        TopKSAE(32, top_k=4, encoder_module=nn.Linear).fit(rows)


def test_an_encoder_that_gives_one_tensor_is_refused(rows):
    with raises("for input of shape (2, 16). Got Tensor."):
        TopKSAE(32, top_k=4, encoder_module=nn.Linear(16, 32)).fit(rows)


def test_an_encoder_of_another_width_is_refused(rows):
    encoder = load_overcomplete_sae().MLPEncoder(5, 32, nb_blocks=0)
    with raises("for input of shape (2, 16). Got RuntimeError: mat1 and mat2 shapes cannot be"):
        TopKSAE(32, top_k=4, encoder_module=encoder).fit(rows)


def test_a_passed_encoder_is_trained_as_a_copy(rows):
    encoder = load_overcomplete_sae().MLPEncoder(16, 32, nb_blocks=0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    sae = TopKSAE(32, top_k=4, encoder_module=encoder, **QUICK).fit(rows)
    assert all(torch.equal(before[n], v) for n, v in encoder.state_dict().items())
    trained = sae.module_.encoder.cpu().state_dict()
    assert not all(torch.equal(before[n], v) for n, v in trained.items())


# -- dictionary_params ----------------------------------------------------------------------


def test_dictionary_params_reach_the_dictionary(rows):
    start = np.random.default_rng(0).standard_normal((32, 16))
    params = {"initializer": start, "normalization": "max_l2"}
    sae = TopKSAE(32, top_k=4, dictionary_params=params, **QUICK | {"lr": 1e-12}).fit(rows)
    expected = start / np.linalg.norm(start, axis=1).max()
    np.testing.assert_allclose(sae.components_, expected, atol=1e-5)


def test_multiplier_is_trained_and_part_of_the_dictionary(rows):
    sae = TopKSAE(32, top_k=4, dictionary_params={"use_multiplier": True}, **QUICK).fit(rows)
    norms = np.linalg.norm(sae.components_, axis=1)
    assert norms[0] != 1
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    codes = sae.transform(rows)
    back = codes @ sae.components_ + sae.decoder_bias_
    np.testing.assert_allclose(sae.inverse_transform(codes), back, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"device": "cpu", "norm": "l2"},
            "The 'dictionary_params' parameter of TopKSAE takes the keys initializer, "
            "normalization, use_multiplier. Got device, norm.",
        ),
        (
            {"initializer": np.zeros((3, 3))},
            "The 'dictionary_params' parameter of TopKSAE must hold an 'initializer' of shape "
            "(nb_concepts, n_features) = (32, 16). Got shape (3, 3) instead.",
        ),
        (
            {"initializer": np.eye(32, 16)},
            "The 'dictionary_params' parameter of TopKSAE must hold an 'initializer' without rows "
            "of zeros.",
        ),
        (
            {"normalization": "l3"},
            "The 'normalization' of the 'dictionary_params' parameter of TopKSAE must be a "
            "callable or one of identity, l1, l2, max_l1, max_l2. Got 'l3' instead.",
        ),
    ],
)
def test_wrong_dictionary_params(params, message, rows):
    with raises(message):
        TopKSAE(32, top_k=4, dictionary_params=params).fit(rows)
