"""Fits that start with each sample's own largest codes, and what follows when they end."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback

from sksae import (
    BatchTopKSAE,
    Crosscoder,
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    RandomSAE,
    SoftFrozenSAE,
    TopKSAE,
    fit_many,
)
from sksae.datasets import make_activations, make_korznikov
from sksae.estimators import _nets
from sksae.metrics import l0, recovered_fraction
from sksae.modules import BatchTopKModule, CrosscoderModule, JumpReLUModule, TopKModule
from sksae.training import SAENet, _sparsity

K, M = 4, 64
SHARED = {"batch_size": 500, "random_state": 0, "device": "cpu"}


def batchtopk(**params):
    return BatchTopKSAE(M, top_k=K, **SHARED | params)


def jumprelu(**params):
    return JumpReLUSAE(M, target_l0=K, **SHARED | params)


def matryoshka(**params):
    return MatryoshkaSAE(M, top_k=K, **SHARED | params)


BUILDERS = (batchtopk, jumprelu, matryoshka)


@pytest.fixture(scope="module")
def data():
    """5,000 rows of 16 features with 64 planted concepts, and 4,000 more."""
    X = make_activations(9000, 16, 64, n_active=3, noise=0.1, random_state=0)[0]
    return X[:5000], X[5000:]


class Watch(Callback):
    """Note what each step was computed with."""

    def __init__(self):
        self.own, self.warmup, self.l0 = [], [], []

    def on_batch_end(self, net, batch, training=False, **kwargs):
        module = net.module_
        if training:
            self.own.append(module.per_sample)
            self.warmup.append(net.criterion_.warmup)
            with torch.no_grad():
                codes = module.forward_scaled(batch[0] / module.input_scale)[1]
            self.l0.append((codes > 0).sum(dim=1).tolist())


def watch_of(sae):
    return dict(sae.net_.callbacks_)["watch"]


def watched(sae):
    return sae.set_params(callbacks=[("watch", Watch())])


# -- the modules ----------------------------------------------------------------------------


def module_of(cls, **params):
    torch.manual_seed(0)
    return cls(6, 20, **params).double().train()


@pytest.mark.parametrize("mode", [True, False])
def test_own_codes_are_those_of_topk(mode):
    u = torch.randn(50, 6, dtype=torch.float64)
    expected = module_of(TopKModule, top_k=3).encode_scaled(u)[1]
    batch = module_of(BatchTopKModule, top_k=3, threshold_momentum=0.9)
    jump = module_of(JumpReLUModule, target_l0=3.2, kernel="rectangle", bandwidth=1.0)
    for module in (batch, jump):
        module.per_sample = True
        codes = module.train(mode).encode_scaled(u)[1]
        torch.testing.assert_close(codes, expected, rtol=0, atol=0)
        codes.square().sum().backward()
    assert batch.running_threshold.isnan()
    assert jump.thresholds.grad is None
    jump.target_l0 = 0.3
    assert jump.encode_scaled(u)[1].count_nonzero(dim=1).max() == 1


def test_own_codes_of_a_crosscoder_rank_by_their_norms():
    module = module_of(CrosscoderModule, top_k=3, threshold_momentum=0.9, layer_widths=[2, 4])
    module.per_sample = True
    pre_codes, codes = module.encode_scaled(torch.randn(50, 6, dtype=torch.float64))
    weights = module.dictionary.get_dictionary()
    weights = weights[:, :2].norm(dim=1) + weights[:, 2:].norm(dim=1)
    for row, got in zip(pre_codes.detach().numpy(), codes.detach().numpy(), strict=True):
        best = np.argsort(-row * weights.detach().numpy())[:3]
        expected = np.where(np.isin(np.arange(20), best), row.clip(0), 0)
        np.testing.assert_array_equal(got, expected)


# -- a whole fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("make", [batchtopk, jumprelu])
def test_a_start_that_never_ends_is_topk_with_one_threshold(make, backend, data):
    params = {"nb_epochs": 3, "backend": backend, "dead_after": 200}
    topk = TopKSAE(M, top_k=K, **SHARED, **params).fit(data[0])
    sae = make(topk_start=1.0, **params).fit(data[0])
    np.testing.assert_array_equal(sae.components_, topk.components_)
    weights = [each.module_.linear_encoder.weight.detach().numpy() for each in (sae, topk)]
    np.testing.assert_array_equal(*weights)
    np.testing.assert_allclose(sae.threshold_, np.mean(sae.threshold_), rtol=1e-6)
    # The threshold that keeps K codes of the training rows keeps about K of others.
    assert sae.l0_ == pytest.approx(K, rel=0.01)
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize("make", BUILDERS)
def test_codes_are_shared_once_the_start_is_over(make, data):
    sae = watched(make(topk_start=13, nb_epochs=2)).fit(data[0])
    watch = watch_of(sae)
    assert watch.own == [True] * 13 + [False] * 7
    assert {max(counts) for counts in watch.l0[:13]} == {K}
    assert all(max(counts) > K for counts in watch.l0[13:])
    for counts in watch.l0[13:15]:  # on average as many, from the first step on
        assert np.mean(counts) == pytest.approx(K, rel=0.15)
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize("make", BUILDERS)
def test_the_threshold_is_right_when_the_start_ends(make, data):
    """Held-out rows see the running threshold, here after two shared steps."""
    sae = make(topk_start=16, nb_epochs=2, validation_fraction=0.1).fit(data[0])
    assert sae.n_steps_ == 2 * 9
    assert sae.history_[:, "l0"] == pytest.approx([K, K], rel=0.1)


def test_penalties_and_their_target_wait(data):
    sae = watched(jumprelu(topk_start=12, sparsity_warmup=5, nb_epochs=2)).fit(data[0])
    warmup = [0] * 12 + [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    assert watch_of(sae).warmup == pytest.approx(warmup)
    assert sae.net_.criterion_.controller.n_steps == 8
    # With one code a row where 0.3 were asked for, a controller would push all the while.
    sae = jumprelu(topk_start=1.0, nb_epochs=8).set_params(target_l0=0.3).fit(data[0])
    assert sae.l0_coefficient_ == sae.l0_coefficient
    assert sae.l0_ == pytest.approx(0.3, rel=0.02)


def test_thresholds_do_not_learn_before_their_time(data):
    decay = {"optimizer_params": {"weight_decay": 0.1}, "optimizer_class": torch.optim.AdamW}
    for backend in ("reference", "cpu"):
        sae = jumprelu(topk_start=1.0, nb_epochs=2, backend=backend, **decay).fit(data[0])
        assert np.ptp(sae.threshold_) < 1e-6 * sae.threshold_[0]
        assert sae.module_.thresholds.grad is None
    assert np.ptp(jumprelu(topk_start=0.5, nb_epochs=2).fit(data[0]).threshold_) > 0


def test_together_with_k_anneal(data):
    sae = batchtopk(topk_start=4, k_anneal=8, nb_epochs=1, monitoring=1).fit(data[0])
    ks = [round(K * (1 + 3 * (1 - min(1, (i + 1) / 8)))) for i in range(10)]
    seen = sae.history_[0, "batches", :, "l0"]
    assert list(seen) == ks
    assert sae.l0_ == pytest.approx(K, rel=0.01)


@pytest.mark.filterwarnings("ignore:.*fired in none:sklearn.exceptions.ConvergenceWarning")
def test_together_with_resampling(data):
    params = {"nb_concepts": 512, "nb_epochs": 4, "auxk_coefficient": 0, "dead_after": 1}
    without = jumprelu(topk_start=0.6).set_params(**params).fit(data[0])
    sae = clone(without).set_params(resample_dead=True).fit(data[0])
    assert not np.allclose(sae.components_, without.components_)  # that it acted
    assert sae.l0_ == pytest.approx(K, rel=0.01)


@pytest.mark.parametrize("make", BUILDERS)
def test_early_stopping_waits_for_the_end_of_the_start(make, data):
    params = {"nb_epochs": 12, "topk_start": 0.5, "validation_fraction": 0.1}
    sae = make(early_stopping=1, lr=2e-2, **params).fit(data[0])
    assert sae.n_iter_ > 6
    assert not sae.module_.per_sample
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.1)


@pytest.mark.parametrize("cls", [RandomSAE, FrozenEncoderSAE, FrozenDecoderSAE, SoftFrozenSAE])
def test_controls_on_stored_codes(cls, data):
    params = {"top_k": K, "nb_epochs": 1, "topk_start": 0.5, **SHARED}
    X = data[0].astype(np.float64)
    slow, fast = (cls(M, backend=backend, **params).fit(X) for backend in ("reference", "cpu"))
    np.testing.assert_allclose(fast.components_, slow.components_, atol=1e-5)
    assert fast.threshold_ == pytest.approx(slow.threshold_, rel=1e-5)
    assert l0(fast.transform(data[1])) == pytest.approx(K, rel=0.1)


def test_crosscoder_keeps_its_budget(data):
    sae = Crosscoder(M, n_layers=2, top_k=K, topk_start=0.5, nb_epochs=2, **SHARED).fit(data[0])
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.05)


# -- in parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BUILDERS)
def test_partial_fit_goes_on_where_it_was(make, data):
    sae = watched(make(topk_start=13))
    for expected in ([True] * 10, [True] * 3 + [False] * 7):
        sae.partial_fit(data[0])
        assert watch_of(sae).own == expected
        # Without a start, too, L0 of JumpReLU first grows with a penalty that is growing.
        assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.15)


def test_a_share_in_partial_fit_is_one_of_two_thousand_steps(data):
    sae = batchtopk(topk_start=0.25).partial_fit(data[0][:1000])
    assert sae.net_.topk_start == 500
    assert sae.net_.criterion_.warmup == 0


@pytest.mark.parametrize("make", BUILDERS)
def test_a_row_after_the_start_does_not_overthrow_the_threshold(make, data):
    sae = make(topk_start=100, nb_epochs=10).partial_fit(data[0])
    for _ in range(9):
        sae.partial_fit(data[0])
    for i in range(3):
        sae.partial_fit(data[0][i : i + 1])
        assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.1)


@pytest.mark.parametrize("make", BUILDERS)
def test_a_pickle_of_a_fit_in_its_start_goes_on_alike(make, data):
    sae = make(topk_start=13).partial_fit(data[0])
    twin = pickle.loads(pickle.dumps(sae))
    for each in (sae, twin):
        each.partial_fit(data[0])
    np.testing.assert_array_equal(twin.components_, sae.components_)
    np.testing.assert_array_equal(twin.transform(data[1]).data, sae.transform(data[1]).data)
    again = clone(sae)
    assert again.topk_start == 13
    again.partial_fit(data[0]).partial_fit(data[0])
    np.testing.assert_array_equal(again.components_, sae.components_)


@pytest.mark.parametrize("make", BUILDERS)
def test_a_warm_start_has_its_start_behind_it(make, data):
    sae = watched(make(topk_start=0.5, nb_epochs=2, warm_start=True)).fit(data[0])
    sae.fit(data[0])
    assert watch_of(sae).own == [False] * 20
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.1)


def test_fit_many_equals_fitting_alone(data):
    def several():
        return [make(topk_start=0.4, nb_epochs=2) for make in BUILDERS]

    for sae, alone in zip(fit_many(several(), data[0]), several(), strict=True):
        alone.fit(data[0])
        np.testing.assert_array_equal(sae.components_, alone.components_)
        np.testing.assert_array_equal(sae.transform(data[1]).data, alone.transform(data[1]).data)


@pytest.mark.parametrize("make", BUILDERS)
def test_ctrl_c_in_the_start_leaves_a_usable_sae(make, data, monkeypatch):
    step = SAENet.train_step

    def interrupted(self, batch, **params):
        if self.n_steps_ == 7:
            raise KeyboardInterrupt
        return step(self, batch, **params)

    monkeypatch.setattr(SAENet, "train_step", interrupted)
    sae = make(topk_start=0.5, nb_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        sae.fit(data[0])
    assert sae.n_steps_ == 7
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.1)


# -- silent concepts ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("make", [batchtopk, jumprelu])
def test_training_begins_anew_where_concepts_are_silent(make, backend, data, monkeypatch):
    """From the first weights, with the rows and the rates that are left."""
    silent(monkeypatch)
    start, left, step = [], [], SAENet.train_step

    def train_step(self, batch, **params):
        if self.n_steps_ == 0:
            start.append(copy.deepcopy(self.module_))
        if self.n_steps_ >= 24:
            left.append((self.optimizer_.param_groups[0]["lr"], batch[0].clone()))
        return step(self, batch, **params)

    monkeypatch.setattr(SAENet, "train_step", train_step)
    sae = make(nb_epochs=12, backend=backend, auxk_coefficient=0.0).fit(data[0].astype(float))
    assert sae.net_.start_ is None and len(left) == 96
    (module,) = start
    module.per_sample, optimizer = True, torch.optim.Adam(module.parameters())
    for rate, x in left:
        optimizer.param_groups[0]["lr"] = rate
        u = module.scale_rows(x)
        optimizer.zero_grad()
        (module.forward_scaled(u)[2] - u).square().mean().backward()
        optimizer.step()
        module.after_step()
    trained = sae.module_.linear_encoder.weight.detach()
    torch.testing.assert_close(trained, module.linear_encoder.weight.detach(), rtol=0, atol=1e-6)
    expected = module.get_dictionary().detach().numpy()
    np.testing.assert_allclose(sae.components_, expected, atol=1e-6)


@pytest.mark.parametrize("make", BUILDERS)
def test_going_on_without_auto_shares_codes_again(make, data, monkeypatch):
    silent(monkeypatch)
    sae = make(nb_epochs=12, warm_start=True).fit(data[0])
    assert sae.topk_steps_ == 96
    watched(sae).set_params(topk_start=0, nb_epochs=1).fit(data[0])
    assert watch_of(sae).own == [False] * 10 and sae.topk_steps_ == 96
    if make is jumprelu:
        sae.set_params(topk_start="auto", target_l0=None).fit(data[0])
        assert sae.topk_steps_ == 96


@pytest.mark.parametrize("make", BUILDERS)
def test_a_pickle_made_while_it_is_watched_goes_on_alike(make, data, monkeypatch):
    silent(monkeypatch, first=1)
    monkeypatch.setattr(_nets, "silence_watch", lambda length: 16)
    sae = make().partial_fit(data[0])
    assert sae.topk_steps_ == 0 and sae.net_.start_ is not None
    twin = pickle.loads(pickle.dumps(sae))
    for each in (sae, twin):
        each.partial_fit(data[0])
        assert each.topk_steps_ == 4
    np.testing.assert_array_equal(twin.components_, sae.components_)


def silent(monkeypatch, share=0.3, first=2):
    """Have a share of the concepts be silent from a look on; give the modules looked at."""
    looks = []

    def silent_share(module):
        looks.append(module)
        return share if len(looks) > first else 0.0

    monkeypatch.setattr(_sparsity, "_silent_share", silent_share)
    return looks


@pytest.mark.parametrize("make", BUILDERS)
def test_silent_concepts_make_each_sample_keep_its_own_codes(make, data, monkeypatch):
    looks = silent(monkeypatch)
    sae = watched(make(nb_epochs=12)).fit(data[0])
    assert len(looks) == 3  # at steps 0, 16, and 24, a fifth of all
    assert watch_of(sae).own == [False] * 24 + [True] * 96
    assert set(watch_of(sae).warmup[24:]) == {0}
    assert sae.topk_steps_ == 96
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.05)
    looks.clear()
    sae.set_params(warm_start=True, nb_epochs=1).fit(data[0])
    assert looks == [] and watch_of(sae).own == [True] * 10
    assert l0(sae.transform(data[1])) == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize("make", BUILDERS)
def test_without_silent_concepts_a_fit_is_that_without_a_start(make, data):
    assert make().topk_start == "auto"
    auto, without = make(nb_epochs=2).fit(data[0]), make(nb_epochs=2, topk_start=0).fit(data[0])
    np.testing.assert_array_equal(auto.components_, without.components_)
    assert auto.topk_steps_ == without.topk_steps_ == 0
    assert make(nb_epochs=2, topk_start=13).fit(data[0]).topk_steps_ == 13


@pytest.mark.parametrize(
    ("make", "early", "late"),
    [(batchtopk, 0.2, 0.04), (matryoshka, 0.4, 0.04), (jumprelu, 0.5, 0.2)],
)
def test_how_many_may_be_silent(make, early, late, data, monkeypatch):
    for share, n_own in ((late, 0), (late + 0.01, 96), (early, 96), (early + 0.01, 104)):
        looks = silent(monkeypatch, share, first=1)  # at steps 16 and 24
        sae = make(nb_epochs=12).fit(data[0])
        assert sae.topk_steps_ == n_own and sae.net_.start_ is None
    looks.clear()
    sae = make(nb_epochs=12, topk_start=0).fit(data[0])
    assert looks == [] and sae.topk_steps_ == 0


def test_silence_counts_in_firings_of_the_average_concept():
    module = module_of(BatchTopKModule, top_k=5, threshold_momentum=0.9)
    module.samples_since_fired[:3] = 1000 * 20 // 5
    assert _sparsity._silent_share(module) == 0
    module.samples_since_fired[:2] += 1
    assert _sparsity._silent_share(module) == 0.1
    jump = module_of(JumpReLUModule, target_l0=4.8, kernel="rectangle", bandwidth=1.0)
    jump.samples_since_fired[:3] = 4001
    assert _sparsity._silent_share(jump) == 0.15


def test_where_no_number_of_codes_is_known_none_is_kept(data, monkeypatch):
    looks = silent(monkeypatch)
    sae = jumprelu(nb_epochs=2).set_params(target_l0=None).fit(data[0])
    assert looks == [] and sae.topk_steps_ == 0


def test_early_stopping_goes_on_where_samples_keep_their_own_codes(data, monkeypatch):
    silent(monkeypatch)
    sae = batchtopk(nb_epochs=60, early_stopping=2, lr=0.05, scheduler_class=None).fit(data[0])
    assert sae.topk_steps_ > 0 and len(sae.history_) < 60


@pytest.mark.parametrize("make", [batchtopk, jumprelu])
def test_planted_features_that_fell_silent_are_found(make, monkeypatch):
    """In a fit of so few rows, silence is counted in fewer firings."""
    X, dictionary, _ = make_korznikov(
        30_000, n_features=30, nb_concepts=150, n_active=5, random_state=0
    )
    monkeypatch.setattr(_sparsity, "_FIRINGS", 50)
    found = []
    for start in ("auto", 0):
        sae = make(nb_epochs=10, topk_start=start, batch_size=256)
        budget = {"top_k": 5} if make is batchtopk else {"target_l0": 5}
        sae.set_params(nb_concepts=150, **budget).fit(X)
        found.append(recovered_fraction(sae.components_, dictionary))
    assert found[0] > 0.8 and found[0] > found[1] + 0.1


# -- what is refused ------------------------------------------------------------------------


def test_jumprelu_without_a_target_is_refused(data):
    message = (
        "topk_start=0.5 of JumpReLUSAE keeps the target_l0 largest codes of each sample at the "
        "start of a fit, but target_l0 is None. Set target_l0 to the mean number of active "
        "concepts that you want, or topk_start='auto'."
    )
    with pytest.raises(ValueError) as error:
        JumpReLUSAE(M, topk_start=0.5).fit(data[0])
    assert str(error.value) == message


@pytest.mark.parametrize("value", [-1, 1.5, "half", None, float("nan")])
def test_values_out_of_range(value, data):
    for sae in (batchtopk(), jumprelu()):
        with pytest.raises(ValueError, match="'topk_start' parameter of .*SAE must be"):
            sae.set_params(topk_start=value).fit(data[0])


def test_a_switch_is_refused(data):
    with pytest.raises(ValueError, match="The 'topk_start' parameter of BatchTopKSAE is a number"):
        batchtopk(topk_start=True).fit(data[0])
