"""The training recipe: dead concepts, targets for L0, annealing, stopping, several fits."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    VanillaSAE,
    fit_many,
)
from sksae.datasets import make_activations
from sksae.metrics import l0
from sksae.modules import JumpReLUModule
from sksae.training import ResampleDead

PENALISED = [VanillaSAE, JumpReLUSAE, GatedSAE]
VARIANTS = [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, GatedSAE, MatryoshkaSAE]
# MatchingPursuitSAE has no encoder, and ArchetypalSAE no dictionary weights, to look at.
ALL = [*VARIANTS, MatchingPursuitSAE, ArchetypalSAE]


@pytest.fixture(scope="module")
def rows():
    """6,000 rows of 16 features with 64 planted concepts."""
    return make_activations(6000, 16, 64, n_active=3, noise=0.1, random_state=0)[0]


# -- AuxK -----------------------------------------------------------------------------------


def gradients(sae, rows, auxk_coefficient, dead):
    """Gradients of the loss of one batch, with these concepts listed as dead."""
    module, loss = sae.module_.train(), sae.net_.criterion_
    module.zero_grad()
    module.dead_concepts = dead
    loss.auxk_coefficient = auxk_coefficient
    u = torch.from_numpy(rows) / module.input_scale
    pre, codes, u_hat, dictionary = module.forward_scaled(u)
    loss(module, u, u_hat, pre, codes, dictionary).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cls", VARIANTS)
def test_auxk_reaches_dead_rows_and_leaves_all_others_alone(cls, rows):
    sae = cls(40, nb_epochs=2, random_state=0).fit(rows)
    dead = torch.tensor([3, 17, 30])
    with torch.no_grad():  # dead indeed: never above any threshold, but within reach of AuxK
        linear = sae.module_.linear_encoder
        linear.weight[dead] *= 1e-2
        linear.bias[dead] = 1e-3
    main, both = (gradients(sae, rows[:500], weight, dead) for weight in (0.0, 1.0))
    encoder = next(name for name in main if name.endswith("weight") and "encoder" in name)
    for name in main:
        changed = (main[name] - both[name]).abs()
        if changed.ndim and len(changed) == 40:
            live = torch.ones(40, dtype=torch.bool)
            live[dead] = False
            assert changed[live].max() < 1e-7
        else:
            assert changed.max() < 1e-7  # the decoder bias
    assert (main[encoder] - both[encoder]).abs()[dead].sum(dim=1).min() > 1e-6
    assert (main["dictionary._weights"] - both["dictionary._weights"]).abs()[dead].max() > 1e-6


class Deaden(Callback):
    """Put half of the concepts out of reach of the data."""

    def on_train_begin(self, net, **kwargs):
        with torch.no_grad():
            net.module_.linear_encoder.bias[32:] = -4


def half_dead(cls, **params):
    own = {"top_k": 4} if "top_k" in cls().get_params() else {"target_l0": 4}
    loop = {"nb_epochs": 12, "batch_size": 128, "callbacks": [Deaden()], "random_state": 0}
    loop["encoder_init_norm"] = 1.0
    return cls(64, **{**loop, **own, **params})


@pytest.mark.parametrize("cls", [*VARIANTS, ArchetypalSAE])
def test_auxk_revives_dead_concepts(cls, rows):
    without, with_auxk = (
        half_dead(cls, auxk_coefficient=weight).fit(rows).dead_fraction_ for weight in (0, 1 / 32)
    )
    assert without > 0.3
    assert with_auxk < 0.75 * without


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("lr", ["auto", 0.5])
@pytest.mark.parametrize("weight", [0.0, 1 / 32])
def test_thresholds_of_dead_concepts_fall_by_the_rate(backend, lr, weight, rows):
    """Those of concepts that are dead all the while, to which no other gradient leads."""
    params = {"auxk_coefficient": weight, "backend": backend, "device": "cpu", "random_state": 0}
    params |= {"optimizer_class": torch.optim.SGD, "lr": lr} if lr != "auto" else {}
    sae = JumpReLUSAE(300, dead_after=1, batch_size=250, target_l0=4, nb_epochs=1, **params)
    logs, rates, dead = [], [], []

    class Kill(Callback):
        def on_batch_begin(self, net, batch, training=False, **kwargs):
            module = net.module_
            if net.n_steps_ == 0:
                with torch.no_grad():
                    module.thresholds[:5] = 20.0
            logs.append(module.thresholds.detach()[:5].clone())
            rates.append(min(net.optimizer_.param_groups[0]["lr"], 0.01))
            dead.append(set(module.dead_concepts.tolist()))

    sae.set_params(callbacks=[Kill()], sparsity_warmup=0).fit(rows)
    assert len(logs) > 5 and all(set(range(5)) <= listed for listed in dead[1:])
    for before, after, rate in zip(logs, logs[1:], rates, strict=False):
        torch.testing.assert_close(before - after, torch.full((5,), rate if weight else 0.0))


def test_thresholds_of_dead_concepts_have_a_floor(rows):
    module = JumpReLUSAE(64, target_l0=4, nb_epochs=1, random_state=0).fit(rows[:500]).module_
    floor = np.log(0.5 / 100)
    with torch.no_grad():
        module.thresholds[:4] = torch.tensor([0.0, floor + 0.1, floor - 1, 0.0])
    module.dead_concepts = torch.arange(3)
    module.lower_dead_thresholds(0.3)
    expected = [-0.3, floor, floor - 1, 0.0]
    np.testing.assert_allclose(module.thresholds[:4].detach(), expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*fired in none:sklearn.exceptions.ConvergenceWarning")
def test_dead_concepts_of_jumprelu_come_back(rows, monkeypatch):
    """From thresholds that nothing reaches, where only those of the others learn."""

    class Raise(Callback):
        def on_batch_begin(self, net, batch, training=False, **kwargs):
            if net.n_steps_ == 0:
                with torch.no_grad():
                    net.module_.thresholds[:24] += 1.0

    params = {"target_l0": 4, "nb_epochs": 12, "dead_after": 500, "topk_start": 0}
    sae = JumpReLUSAE(48, callbacks=[Raise()], batch_size=100, random_state=0, **params)
    revived = clone(sae).fit(rows)
    monkeypatch.setattr(JumpReLUModule, "lower_dead_thresholds", lambda self, step: None)
    left = sae.fit(rows)
    assert revived.dead_fraction_ < 0.05 and left.dead_fraction_ > 0.3
    assert revived.score(rows) > left.score(rows)


def test_many_dead_concepts_are_warned_of(rows):
    message = (
        r"^\d\d% of the 64 concepts of this TopKSAE fired in none of the last training rows, as "
        r"many as a pass has. Lower nb_concepts, train on more rows or for more epochs, raise "
        r"auxk_coefficient, or lower lr.$"
    )
    sae = half_dead(TopKSAE, auxk_coefficient=0)
    with pytest.warns(ConvergenceWarning, match=message):
        sae.fit(rows)


# -- resampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PENALISED)
def test_resampling_changes_weights_and_revives(cls, rows):
    off, on, again = (
        half_dead(cls, auxk_coefficient=0, resample_dead=value).fit(rows)
        for value in (False, True, True)
    )
    assert off.dead_fraction_ > 0.3
    assert on.dead_fraction_ < 0.75 * off.dead_fraction_
    np.testing.assert_array_equal(again.components_, on.components_)


@pytest.mark.parametrize("cls", PENALISED)
def test_a_resampled_concept_starts_at_a_row(cls, rows):
    sae = half_dead(cls, auxk_coefficient=0).fit(rows)
    net, module, linear = sae.net_, sae.module_, sae.module_.linear_encoder
    dead = (module.samples_since_fired >= net.dead_after).nonzero()[:, 0]
    live = torch.ones(64, dtype=torch.bool)
    live[dead] = False
    assert 0 < len(dead) < 64
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    norm = linear.weight[live].norm(dim=1).mean().item()
    moments = net.optimizer_.state[linear.weight]["exp_avg"]
    moments += 1
    callback = ResampleDead()
    callback.on_train_begin(net)
    callback.on_epoch_end(net, dataset_train=net.get_dataset(rows))

    for name, p in module.named_parameters():
        kept = live if len(p) == 64 else slice(None)
        assert torch.equal(p[kept], before[name][kept])
    u = torch.from_numpy(rows) / module.input_scale - module.decoder_bias
    cosines = module.dictionary._weights[dead] @ torch.nn.functional.normalize(u, dim=1).T
    np.testing.assert_allclose(cosines.max(dim=1).values.detach(), 1, atol=1e-5)
    np.testing.assert_allclose(linear.weight[dead].detach().norm(dim=1), 0.2 * norm, rtol=1e-5)
    assert (linear.bias[dead] == 0).all()
    assert (moments[dead] == 0).all()
    assert (moments[live] != 0).any()
    assert (module.samples_since_fired[dead] == 0).all()


@pytest.mark.parametrize("sinks", [0, 30])
def test_resampled_concepts_differ(sinks, rows):
    sink = np.zeros((sinks, 16), dtype=np.float32)
    sink[:, 5] = 300 * np.linalg.norm(rows, axis=1).mean()
    sae = half_dead(VanillaSAE, auxk_coefficient=0, resample_dead=True)
    sae.fit(np.concatenate([rows, sink]))
    cosines = sae.components_ @ sae.components_.T - 2 * np.eye(64)
    assert (cosines > 0.9999).sum() // 2 <= (3 if sinks else 0)  # some learn the sinks' direction
    assert sae.dead_fraction_ < 0.3


def test_resampling_needs_two_epochs(rows):
    with pytest.raises(ValueError, match="acts at the ends of epochs in the first half of a fit"):
        VanillaSAE(32, nb_epochs=1, resample_dead=True).fit(rows)


def test_resampling_needs_the_linear_encoder(rows):
    with pytest.raises(
        ValueError,
        match="resample_dead=True needs the linear encoder of VanillaSAE. Set encoder_module=None",
    ):
        VanillaSAE(32, encoder_module="mlp_ln_1", resample_dead=True).fit(rows)


# -- targets, annealing -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", PENALISED)
@pytest.mark.parametrize("target", [4, 10])
def test_target_l0_is_met_on_held_out_rows(cls, target, rows):
    train, test = rows[:4000], rows[4000:]
    sae = cls(64, target_l0=target, nb_epochs=60, batch_size=256, random_state=0).fit(train)
    assert l0(sae.transform(test)) == pytest.approx(target, rel=0.05)
    name = "l0_coefficient_" if cls is JumpReLUSAE else "l1_coefficient_"
    start = {VanillaSAE: 0.1 * 4, JumpReLUSAE: 1e-3, GatedSAE: 0.2 * 4}[cls]
    assert getattr(cls(64, nb_epochs=1).fit(train), name) == pytest.approx(start)
    assert getattr(sae, name) != pytest.approx(start)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target_l0": 64}, "target_l0=64 is not below nb_concepts=64 in VanillaSAE. Lower"),
        (
            {"target_l0": 4, "l1_coefficient": 0},
            "target_l0=4 needs a positive l1_coefficient in VanillaSAE, to start from. Got 0.",
        ),
    ],
)
def test_targets_that_cannot_be_reached(params, message, rows):
    with pytest.raises(ValueError, match=message):
        VanillaSAE(64, **params).fit(rows)


@pytest.mark.parametrize("cls", PENALISED)
@pytest.mark.parametrize("n_steps", [100, 600])
def test_a_target_that_is_missed_is_warned_of(cls, n_steps, rows):
    sae = cls(256, target_l0=8, nb_epochs=n_steps // 6, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        sae.fit(rows)
    missed = abs(sae.l0_ / 8 - 1) > 0.1
    assert missed == any("far from target_l0=8" in str(w.message) for w in caught)
    assert not (missed and (n_steps >= 600 or cls is JumpReLUSAE))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_l0_is_held_until_the_penalty_has_its_weight(backend, rows):
    shared = {"target_l0": 8, "nb_epochs": 2, "batch_size": 200, "monitoring": 1}
    sae = JumpReLUSAE(256, **shared, sparsity_warmup=30, backend=backend, random_state=0)
    batches = sae.fit(rows).history_[:, "batches", :, "l0"]
    held = np.concatenate(batches)[1:30]
    np.testing.assert_allclose(held, 8, rtol=0.25)
    free = clone(sae).set_params(sparsity_warmup=0).fit(rows).history_[:, "batches", :, "l0"]
    assert max(abs(np.log(np.concatenate(free)[1:30] / 8))) > 0.4


def test_a_target_stays_met_when_a_fit_goes_on(rows):
    sae = VanillaSAE(64, target_l0=4, nb_epochs=20, batch_size=256, random_state=0).fit(rows)
    for _ in range(3):
        sae.partial_fit(rows)
        assert sae.l0_ == pytest.approx(4, rel=0.3)


class SeesK(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, net, training=False, **kwargs):
        self.seen.append(net.module_.train().k())


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, MatryoshkaSAE, ArchetypalSAE])
def test_k_falls_to_top_k(cls, rows):
    sae = cls(64, top_k=4, k_anneal=6, nb_epochs=1, batch_size=600, random_state=0)
    sae.set_params(callbacks=[("k", SeesK())]).fit(rows)
    seen = dict(sae.net_.callbacks_)["k"].seen
    assert seen == [round(4 * (1 + 3 * (1 - min(1, (i + 1) / 6)))) for i in range(10)]
    assert l0(sae.transform(rows)) == pytest.approx(4, rel=0.01)
    twin = pickle.loads(pickle.dumps(sae))
    np.testing.assert_array_equal(twin.transform(rows).data, sae.transform(rows).data)


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, MatryoshkaSAE])
def test_mean_l0_is_k_within_one_percent(cls, rows):
    sae = cls(64, top_k=5, nb_epochs=3, batch_size=256, random_state=0).fit(rows)
    assert l0(sae.transform(rows)) == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("batch_size", [1024, 4096])
@pytest.mark.parametrize("sae", [BatchTopKSAE(64, top_k=4), JumpReLUSAE(64, target_l0=4)])
def test_a_ragged_last_batch_does_not_move_the_threshold(sae, batch_size, rows):
    sae = clone(sae).set_params(nb_epochs=4, batch_size=batch_size, random_state=0)
    sae.fit(rows[:4097])
    assert l0(sae.transform(rows[:4097])) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("sae", [BatchTopKSAE(64, top_k=4), JumpReLUSAE(64, target_l0=4)])
def test_texts_of_equal_length_do_not_bias_the_threshold(sae):
    rows = make_activations(8192 * 4, 16, 64, n_active=3, noise=0.1, random_state=0)[0]
    rows[::4] = 0.2 * rows[::4] + 4  # every first position differs
    sae = clone(sae).set_params(nb_epochs=1, random_state=0).fit(rows)
    assert l0(sae.transform(rows)) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sae", [BatchTopKSAE(64, top_k=4), JumpReLUSAE(64, target_l0=4)])
def test_a_few_rows_do_not_overthrow_the_threshold(sae, rows):
    sae = clone(sae).set_params(nb_epochs=10, batch_size=256, random_state=0).fit(rows)
    for i in range(5):
        sae.partial_fit(rows[3 * i : 3 * i + 3])
        assert l0(sae.transform(rows)) == pytest.approx(4, rel=0.1)


def test_batch_normalisation_and_a_last_batch_of_one_row(rows):
    sae = BatchTopKSAE(32, top_k=4, encoder_module="mlp_bn_1", batch_size=128, random_state=0)
    sae.fit(rows[:513])
    assert sae.l0_ == pytest.approx(4, rel=0.02)


# -- units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_fold_normalization_keeps_codes_and_reconstructions(cls, rows):
    sae = cls(40, nb_epochs=2, random_state=0).fit(7 * rows + 3)
    x = torch.from_numpy(7 * rows[:50] + 3)
    module = sae.module_.eval()
    folded = module.fold_normalization()
    assert folded.input_scale == 1
    assert module.input_scale != 1
    for old, new in ((module.encode(x)[1], folded.encode(x)[1]), (module(x)[-1], folded(x)[-1])):
        np.testing.assert_allclose(new.detach(), old.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(folded.decoder_bias.detach(), sae.decoder_bias_, rtol=1e-6)
    state = folded.state_dict()
    np.testing.assert_allclose(state["decoder_bias"], sae.decoder_bias_, rtol=1e-6)
    if cls is JumpReLUSAE:
        np.testing.assert_allclose(folded.thresholds.detach().exp(), sae.threshold_, rtol=1e-5)


def test_fold_normalization_needs_the_linear_encoder(rows):
    sae = TopKSAE(32, encoder_module="mlp_ln_1", nb_epochs=1, random_state=0).fit(rows)
    with pytest.raises(ValueError, match="fold_normalization needs the linear encoder"):
        sae.module_.fold_normalization()


@pytest.mark.parametrize("cls", ALL)
def test_a_state_dict_carries_everything_that_encoding_needs(cls, rows):
    sae = cls(40, nb_epochs=2, random_state=0).fit(rows)
    other = cls(40, nb_epochs=1, random_state=1).fit(3 * rows[:500] + 1)
    other.module_.load_state_dict(sae.module_.state_dict())
    codes, expected = other.transform(rows[:50]), sae.transform(rows[:50])
    np.testing.assert_array_equal(codes.toarray(), expected.toarray())


@pytest.mark.parametrize("cls", ALL)
def test_rows_of_extreme_norm_do_not_spoil_the_rest(cls, rows):
    params = {"nb_epochs": 10, "batch_size": 256, "random_state": 0}
    if "top_k" in cls().get_params():
        params["top_k"] = 8  # with the default, half the concepts, even a bad scale does no harm
    clean = cls(64, **params).fit(rows).score(rows)
    sink = np.zeros((30, 16), dtype=np.float32)
    sink[:, 5] = 300 * np.linalg.norm(rows, axis=1).mean()
    both = np.concatenate([rows, sink])
    pulled_in, left = (
        cls(64, outlier_ratio=ratio, **params).fit(both).score(rows) for ratio in (5.0, None)
    )
    assert pulled_in > max(clean - 0.1, left - 0.01)


def test_many_rows_at_one_point_do_not_set_the_scale(rows):
    both = np.concatenate([np.zeros((9000, 16), dtype=np.float32), rows])
    scales = [
        VanillaSAE(32, nb_epochs=1, outlier_ratio=ratio).fit(both).module_.input_scale.item()
        for ratio in (5.0, None)
    ]
    assert scales[0] == pytest.approx(scales[1], rel=0.1)


# -- early stopping ---------------------------------------------------------------------------


class Spoil(Callback):
    """Ruin the weights before the fourth epoch."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 4:
            with torch.no_grad():
                net.module_.linear_encoder.bias += 5
                if hasattr(net.module_, "b_mag"):
                    net.module_.b_mag += 5


@pytest.mark.parametrize("cls", [*VARIANTS, ArchetypalSAE])
def test_early_stopping_restores_the_best_epoch(cls, rows):
    sae = cls(48, early_stopping=2, nb_epochs=30, batch_size=256, lr=1e-3, random_state=0)
    if "topk_start" in sae.get_params():
        sae.set_params(topk_start=0)  # "auto" is decided in the sixth epoch
    if "sort_at" in sae.get_params():
        sae.set_params(sort_at=0)  # after the seventh
    sae.set_params(callbacks=[Spoil()], validation_fraction=0.2, encoder_init_norm=1.0).fit(rows)
    scores = sae.history_[:, "explained_variance"]
    assert int(np.argmax(scores)) == 2
    assert sae.n_iter_ == 5
    assert sae.score(rows) == pytest.approx(max(scores), abs=0.1)
    assert sae.score(rows) > scores[-1] + 0.2


def test_early_stopping_holds_rows_out_by_itself(rows):
    sae = TopKSAE(48, top_k=4, early_stopping=50, nb_epochs=2, random_state=0).fit(rows)
    assert np.isfinite(sae.history_[:, "valid_loss"]).all()
    assert sae.n_steps_ == 2 * 6


@pytest.mark.parametrize(
    "sae",
    [
        VanillaSAE(64, target_l0=4, early_stopping=3),
        VanillaSAE(64, sparsity_warmup=0.5, early_stopping=3),
        TopKSAE(64, top_k=4, k_anneal=0.8, early_stopping=3),
        BatchTopKSAE(64, top_k=4, k_anneal=0.8, early_stopping=3),
        BatchTopKSAE(64, top_k=4, early_stopping=3),
    ],
    ids=lambda sae: type(sae).__name__,
)
def test_early_stopping_waits_for_sparsity(sae, rows):
    params = {"nb_epochs": 20, "batch_size": 256, "random_state": 0}
    sae = clone(sae).set_params(**params).fit(rows)
    alone = clone(sae).set_params(early_stopping=None, validation_fraction=0.1).fit(rows)
    assert len(sae.history_) > 4  # of 20, in which "auto" is decided
    assert sae.l0_ == pytest.approx(alone.l0_, rel=0.15)
    assert sae.score(rows) > alone.score(rows) - 0.05


def test_early_stopping_measures_the_weights_that_it_keeps(rows):
    sae = VanillaSAE(64, early_stopping=9, resample_dead=True, nb_epochs=6, random_state=0)
    sae.set_params(callbacks=[Deaden()], batch_size=256, validation_fraction=0.2).fit(rows)
    names = [name for name, _ in sae.net_.callbacks_]
    assert names.index("sksae_early_stopping") < names.index("sksae_resample_dead")


def test_early_stopping_does_nothing_in_partial_fit(rows):
    sae = TopKSAE(32, top_k=3, early_stopping=2, batch_size=100, random_state=0)
    assert sae.partial_fit(rows[:1000]).n_steps_ == 10
    sae.partial_fit(rows[:1])


@pytest.mark.parametrize("name", ["early_stopping", "k_anneal"])
def test_numbers_are_not_switches(name, rows):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of TopKSAE is a number, not"):
        TopKSAE(32, top_k=3, **{name: True}).fit(rows)


def test_early_stopping_in_a_search_over_two_processes(rows):
    sae = TopKSAE(32, top_k=3, early_stopping=1, nb_epochs=60, lr=5e-2, random_state=0)
    search = GridSearchCV(sae, {"nb_concepts": [24, 32]}, cv=2, n_jobs=2).fit(rows[:1500])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.n_iter_ < 60


# -- several at once --------------------------------------------------------------------------


def several():
    return [
        TopKSAE(40, top_k=4, nb_epochs=3, random_state=0),
        BatchTopKSAE(24, top_k=4, nb_epochs=2, random_state=0),
        VanillaSAE(40, nb_epochs=3, batch_size=300, target_l0=5, random_state=1),
        JumpReLUSAE(24, nb_epochs=1, validation_fraction=0.2, random_state=2),
        GatedSAE(24, nb_epochs=2, random_state=0),
        MatryoshkaSAE(32, top_k=4, nb_epochs=2, random_state=0),
        MatchingPursuitSAE(24, top_k=3, nb_epochs=2, random_state=0),
        ArchetypalSAE(24, top_k=3, nb_epochs=2, random_state=0),
        TopKSAE(24, top_k=3, nb_epochs=2, encoder_module="mlp_ln_1", random_state=0),
    ]


def assert_equal_fits(one, other, rows):
    np.testing.assert_array_equal(one.components_, other.components_)
    np.testing.assert_array_equal(one.transform(rows).data, other.transform(rows).data)
    assert one.n_steps_ == other.n_steps_
    assert one.dead_fraction_ == other.dead_fraction_


def test_fit_many_equals_fitting_each_alone(rows):
    saes = several()
    assert fit_many(iter(saes), rows) == saes
    for sae, alone in zip(saes, several(), strict=True):
        assert_equal_fits(sae, alone.fit(rows), rows)


def test_fit_many_reads_each_batch_once(rows, monkeypatch):
    from sksae.training import RowBatches

    taken = []
    take = RowBatches.take
    monkeypatch.setattr(
        RowBatches, "take", lambda self, index: taken.append(index) or take(self, index)
    )
    saes = [TopKSAE(24, top_k=k, nb_epochs=2, random_state=0) for k in (2, 3, 4)]
    TopKSAE(24, top_k=2, nb_epochs=2, random_state=0).fit(rows)
    n_alone = sum(isinstance(index, torch.Tensor) for index in taken)
    taken.clear()
    fit_many(saes, rows)
    n_together = sum(isinstance(index, torch.Tensor) for index in taken)
    assert n_alone <= n_together
    assert n_together - n_alone <= 2 * 6  # the diagnostics of the two others, and no step


def test_fit_many_continues_warm_starts(rows):
    saes = [sae.set_params(warm_start=True) for sae in several()[:3]]
    fit_many(saes, rows)
    alone = [clone(sae).fit(rows).fit(rows) for sae in saes]
    fit_many(saes, rows)
    for sae, other in zip(saes, alone, strict=True):
        assert_equal_fits(sae, other, rows)


def test_fit_many_refuses_what_it_cannot_fit(rows):
    sae = TopKSAE(24, top_k=2)
    with pytest.raises(ValueError, match="got the same estimator twice. Use sklearn.base.clone."):
        fit_many([sae, sae], rows)
    with pytest.raises(TypeError, match="fit_many takes SAEs, got int"):
        fit_many([sae, 3], rows)
    bad = TopKSAE(24, top_k=30)
    with pytest.raises(ValueError, match="top_k=30 exceeds nb_concepts=24"):
        fit_many([sae, bad], rows)
    assert not hasattr(sae, "net_")
    assert fit_many([], rows) == []


def test_ctrl_c_in_fit_many_leaves_all_usable(rows, monkeypatch):
    from sksae.training import SAENet

    saes = several()[:3]
    step, count = SAENet.train_step, []

    def interrupted(self, batch, **kwargs):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return step(self, batch, **kwargs)

    monkeypatch.setattr(SAENet, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_many(saes, rows)
    assert [sae.n_steps_ for sae in saes] == [3, 2, 2]
    for sae in saes:
        assert np.isfinite(sae.score(rows))


def test_a_failure_in_fit_many_leaves_all_as_they_were(rows):
    good = TopKSAE(24, top_k=2, nb_epochs=3, random_state=0)
    bad = VanillaSAE(24, nb_epochs=3, lr=1e30, clip_grad=None, random_state=0)
    with pytest.raises(FloatingPointError):
        fit_many([good, bad], rows)
    assert not hasattr(good, "net_")


# -- continuations that fail ------------------------------------------------------------------


class Fails(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise RuntimeError("no")


def test_a_failed_continuation_leaves_the_loss_as_it_was(rows):
    sae = VanillaSAE(64, target_l0=4, nb_epochs=6, warm_start=True, random_state=0).fit(rows)
    before, codes = sae.l1_coefficient_, sae.transform(rows)
    with pytest.raises(RuntimeError, match="no"):
        sae.set_params(target_l0=20, callbacks=[Fails()]).fit(rows)
    assert sae.l1_coefficient_ == before
    assert sae.net_.criterion_.target_l0 == 4
    np.testing.assert_array_equal(sae.transform(rows).data, codes.data)


def test_a_refused_continuation_changes_nothing(rows):
    sae = TopKSAE(64, top_k=4, nb_epochs=2, warm_start=True, random_state=0).fit(rows)
    sae.set_params(top_k=9, scheduler_class=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match="needs a metric"):
        sae.fit(rows)
    assert l0(sae.transform(rows)) == pytest.approx(4, rel=0.01)
    with pytest.raises(ValueError, match="outlier_ratio=2.0, but this TopKSAE was fitted with 5.0"):
        sae.set_params(scheduler_class="auto", outlier_ratio=2.0).fit(rows)
