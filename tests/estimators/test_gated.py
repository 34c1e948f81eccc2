"""What GatedSAE promises: codes that do not shrink, thresholds, the loss it was asked for."""

import re

import numpy as np
import pytest
import torch

from sksae import GatedSAE, VanillaSAE
from sksae.datasets import make_activations

QUICK = {"nb_epochs": 3, "batch_size": 200, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 16 features, 3 of 32 planted concepts active in each."""
    return make_activations(2000, 16, 32, n_active=3, noise=0.05, offset=1.0, random_state=0)[0]


def relative_bias(sae, X):
    """The paper's gamma (section 4.2): below 1 where reconstructions are too small."""
    centered, bias = X - sae.decoder_bias_, sae.decoder_bias_
    back = sae.inverse_transform(sae.transform(X)) - bias
    return (back**2).sum() / (back * centered).sum()


def test_codes_do_not_shrink_where_those_under_an_l1_penalty_do(rows):
    params = {"target_l0": 4, "nb_epochs": 25, "batch_size": 200, "random_state": 0}
    gated, vanilla = (cls(32, **params).fit(rows) for cls in (GatedSAE, VanillaSAE))
    assert gated.l0_ == pytest.approx(vanilla.l0_, rel=0.1)
    assert relative_bias(gated, rows) == pytest.approx(1, abs=0.05)
    assert relative_bias(vanilla, rows) < 0.7
    assert gated.score(rows) > vanilla.score(rows) + 0.2


def test_more_penalty_gives_sparser_codes(rows):
    params = QUICK | {"nb_epochs": 20}
    l0 = [GatedSAE(32, l1_coefficient=c, **params).fit(rows).l0_ for c in (0, 1, 3)]
    assert l0[0] > l0[1] > l0[2]
    assert l0[0] > 3 * l0[2]


def test_auto_is_a_fifth_of_the_root_of_the_width(rows):
    assert GatedSAE(32, **QUICK).fit(rows).l1_coefficient_ == pytest.approx(0.2 * 4)
    sae = GatedSAE(32, l1_coefficient=0.7, **QUICK).fit(rows)
    assert sae.l1_coefficient_ == pytest.approx(0.7)


@pytest.mark.parametrize("factor", [1, 50])
def test_thresholds_make_a_jumprelu_of_it(rows, factor):
    X = factor * rows.astype(np.float64)
    sae = GatedSAE(32, **QUICK | {"nb_epochs": 10}).fit(X)
    module = sae.module_
    weight, r, b = (
        t.detach().numpy() for t in (module.linear_encoder.weight, module.r_mag, module.b_mag)
    )
    magnitudes = (X - sae.decoder_bias_) @ weight.T * np.exp(r) + factor_of(module) * b
    expected = magnitudes * (magnitudes > sae.threshold_)
    np.testing.assert_allclose(sae.transform(X).toarray(), expected, atol=1e-9 * factor)
    assert (sae.threshold_ >= 0).all() and (sae.threshold_ > 0).any()
    assert np.ptp(r) > 0.01  # magnitudes have learnt apart from gates


def factor_of(module):
    return module.input_scale.item()


def test_an_encoder_of_the_callers_gives_the_gates(rows):
    sae = GatedSAE(32, encoder_module="mlp_ln_1", **QUICK).fit(rows)
    gates, codes = sae.module_.encode(torch.from_numpy(rows))
    assert not codes[gates <= 0].any()
    assert np.isfinite(sae.score(rows))
    with pytest.raises(ValueError, match="resample_dead=True needs the linear encoder of GatedSAE"):
        sae.set_params(resample_dead=True).fit(rows)


def test_gradients_of_the_criterion_do_not_reach_closed_gates(rows):
    def nothing(x, x_hat, pre_codes, codes, dictionary):
        return 0 * x_hat.sum()

    sae = GatedSAE(32, criterion=nothing, auxk_coefficient=0, l1_coefficient=0, **QUICK)
    sae.fit(rows)
    start = GatedSAE(32, lr=1e-12, **QUICK).fit(rows)
    np.testing.assert_allclose(sae.components_, start.components_, atol=1e-6)
    np.testing.assert_array_equal(sae.module_.r_mag.detach(), 0)
    weight = sae.module_.linear_encoder.weight  # the auxiliary loss has taught the gates
    assert (weight - start.module_.linear_encoder.weight).abs().max() > 1e-3
    assert (
        "criterion is not 'mse'"
        in GatedSAE(32, criterion=nothing, backend="cpu", **QUICK).fit(rows).backend_
    )


def test_wide_fits_run_on_stored_codes_and_say_so(rows):
    params = {"nb_epochs": 8, "batch_size": 200, "random_state": 0, "target_l0": 4}
    fast, slow = (GatedSAE(256, backend=b, **params).fit(rows) for b in ("auto", "reference"))
    assert re.match(r"cpu \(stored codes only, .*steps in plain torch: too many", fast.backend_)
    assert fast.score(rows) == pytest.approx(slow.score(rows), abs=0.02)


def test_a_fit_goes_on_with_another_penalty(rows):
    sae = GatedSAE(32, l1_coefficient=0.1, warm_start=True, **QUICK | {"nb_epochs": 10}).fit(rows)
    before = sae.l0_
    sae.set_params(l1_coefficient=3.0).fit(rows)
    assert sae.l1_coefficient_ == 3.0
    assert sae.l0_ < 0.7 * before
    assert sae.n_iter_ == 20
    sae.partial_fit(rows[:400])
    assert np.isfinite(sae.score(rows))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"l1_coefficient": -1}, "The 'l1_coefficient' parameter of GatedSAE must be"),
        ({"target_l0": 32}, "target_l0=32 is not below nb_concepts=32 in GatedSAE. Lower"),
        ({"target_l0": 3, "l1_coefficient": 0}, "target_l0=3 needs a positive l1_coefficient in"),
    ],
)
def test_wrong_parameters(params, message, rows):
    with pytest.raises(ValueError, match=re.escape(message)):
        GatedSAE(32, **params).fit(rows)
