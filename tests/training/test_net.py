"""The training loop: history, callbacks, schedules, precision, failures."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    LRScheduler,
    TrainEndCheckpoint,
)
from skorch.exceptions import DeviceWarning

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    VanillaSAE,
)
from sksae.datasets import make_activations
from sksae.training import BatchIterator, RowBatches
from sksae.training._data import InputStatistics, geometric_median, mean_and_variance

VARIANTS = [
    VanillaSAE,
    TopKSAE,
    BatchTopKSAE,
    JumpReLUSAE,
    GatedSAE,
    MatryoshkaSAE,
    MatchingPursuitSAE,
    ArchetypalSAE,
]


@pytest.fixture(scope="module")
def X():
    return make_activations(400, 10, 20, n_active=3, offset=1.0, random_state=0)[0]


def topk(**params):
    params = {"nb_epochs": 2, "batch_size": 100, "random_state": 0} | params
    return TopKSAE(20, top_k=3, **params)


# -- batches ------------------------------------------------------------------------------


def batches(n, size, seed=None, ahead=False):
    data = RowBatches(np.arange(n, dtype=np.float32)[:, None], torch.device("cpu"), torch.float32)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return BatchIterator(data, size, generator, ahead)


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 1, [1, 1, 1]), (2, 8, [2]), (8, 4, [4, 4])],
)
def test_batch_sizes(n, size, sizes):
    iterator = batches(n, size)
    assert [len(x) for x, _ in iterator] == sizes
    assert len(iterator) == len(sizes)


def test_shuffled_batches_hold_every_row_once_in_a_new_order_each_pass():
    iterator = batches(50, 7, seed=0)
    first, second = ([int(v) for x, _ in iterator for v in x] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_orders_drawn_ahead_are_those_drawn_in_turn():
    """Also where somebody else draws from the generator, and the generator is where it would be."""
    orders, after = [], []
    for ahead in (False, True):
        iterator, seen = batches(50, 7, seed=0, ahead=ahead), []
        for i in range(5):
            seen.append([int(v) for x, _ in iterator for v in x])
            after.append(iterator.generator.get_state())
            if i == 2:
                torch.rand(3, generator=iterator.generator)
        orders.append(seen)
    assert orders[0] == orders[1]
    assert all(map(torch.equal, after[:5], after[5:]))


def test_statistics_of_the_input(X):
    data = RowBatches(X + 100, torch.device("cpu"), torch.float32)
    statistics = InputStatistics.of(data)
    wide = X.astype(np.float64) + 100
    distance = lambda center: np.linalg.norm(wide - center, axis=1).sum()  # noqa: E731
    expected = minimize(distance, wide.mean(0), tol=1e-10).x
    np.testing.assert_allclose(statistics.center.numpy(), expected, atol=1e-4)
    squares = ((wide - statistics.center.numpy()) ** 2).sum(axis=1)
    assert statistics.radius(2.0) == pytest.approx(2 * np.sqrt(np.median(squares)), rel=1e-2)
    assert statistics.radius(None) == np.inf
    assert statistics.scale(np.inf) == pytest.approx(np.sqrt(squares.mean() / 10), rel=1e-6)
    radius = np.sqrt(np.median(squares))
    expected = np.sqrt(squares[squares <= radius**2].mean() / 10)
    assert statistics.scale(radius) == pytest.approx(expected, rel=1e-6)


def test_rows_of_extreme_norm_move_neither_center_nor_scale(X):
    usual = InputStatistics.of(RowBatches(X, torch.device("cpu"), torch.float32))
    spoilt = np.concatenate([X, np.full((8, X.shape[1]), 1e4, dtype=np.float32)])
    robust = InputStatistics.of(RowBatches(spoilt, torch.device("cpu"), torch.float32))
    scale = usual.scale(usual.radius(5))
    np.testing.assert_allclose(robust.center, usual.center, atol=0.1 * scale)
    assert robust.scale(robust.radius(5)) == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize("rows", [np.full((5, 3), 0.1), np.array([[1.0, 0.0]] * 9 + [[5.0, 1.0]])])
def test_geometric_median_at_a_row_of_the_data(rows):
    np.testing.assert_allclose(geometric_median(torch.tensor(rows)), rows[0], atol=1e-4)


def test_mean_and_variance(X):
    wide = X.astype(np.float64) + 100
    data = RowBatches(X + 100, torch.device("cpu"), torch.float32)
    mean, variance = mean_and_variance(data)
    np.testing.assert_allclose(mean.numpy(), wide.mean(0), rtol=1e-6)
    assert variance == pytest.approx(wide.var(0).mean(), rel=1e-5)


def test_module_starts_at_the_center_and_the_scale(X):
    sae = topk(lr=1e-12, nb_epochs=1).fit(X)
    statistics = InputStatistics.of(RowBatches(X, torch.device("cpu"), torch.float32))
    np.testing.assert_allclose(sae.decoder_bias_, statistics.center, atol=1e-5)
    scale = statistics.scale(statistics.radius(5))
    assert sae.module_.input_scale.item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("cls", VARIANTS)
def test_the_units_of_the_input_do_not_change_the_fit(X, cls, factor):
    params = {"nb_epochs": 3, "batch_size": 100, "random_state": 0}
    params |= {"top_k": 3} if "top_k" in cls().get_params() else {}
    one = cls(20, **params).fit(X.astype(np.float64))
    other = cls(20, **params).fit(factor * X.astype(np.float64))
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-6)
    np.testing.assert_allclose(other.decoder_bias_, factor * one.decoder_bias_, rtol=1e-6)
    if hasattr(one, "threshold_"):
        np.testing.assert_allclose(other.threshold_, factor * np.array(one.threshold_), rtol=1e-6)


# -- history ------------------------------------------------------------------------------


def test_epoch_values_are_those_of_the_rows(X):
    sae = topk(lr=1e-12, nb_epochs=1, validation_fraction=0.25).fit(X)
    record = sae.history_[-1]
    keys = "epoch train_loss valid_loss explained_variance l0 dead_fraction dur"
    assert set(keys.split()) < set(record)
    loss = topk(lr=1e-12, nb_epochs=1).fit(X)
    scale = loss.module_.input_scale.item()
    expected = np.mean((X - loss.inverse_transform(loss.transform(X))) ** 2) / scale**2
    assert loss.history_[-1]["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert loss.history_[-1]["explained_variance"] == pytest.approx(loss.score(X), abs=1e-5)
    assert loss.history_[-1]["l0"] == pytest.approx(loss.transform(X).nnz / 400, rel=1e-5)


def test_held_out_values_replace_training_ones(X):
    sae = topk(validation_fraction=0.25).fit(X)
    assert sae.n_steps_ == 2 * 3
    assert np.isfinite(sae.history_[:, "valid_loss"]).all()
    assert sae.net_.valid_data is None


def test_no_batch_entries_unless_asked_for(X):
    assert topk().fit(X).history_[-1]["batches"] == [{}]


def test_monitoring_every_n_steps(X):
    sae = topk(monitoring=3).fit(X)
    entries = [b for epoch in sae.history_ for b in epoch["batches"]]
    assert [b["step"] for b in entries] == [3, 6]
    assert all({"train_loss", "l0", "lr"} <= set(b) for b in entries)


def test_progress_bar(X, capsys):
    topk(verbose=1).fit(X)
    shown = capsys.readouterr().err
    assert "TopKSAE" in shown
    assert "8/8" in shown
    assert "EV=" in shown
    topk().fit(X)
    assert capsys.readouterr() == ("", "")


# -- callbacks ----------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        self.seen.append((training, len(batch[0]), float(kwargs["loss"])))

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.seen.append(sorted(name for name, _ in named_parameters))


def test_batch_hooks_run_when_a_callback_has_them(X):
    recorder = Recorder()
    sae = topk(callbacks=[("mine", recorder)], nb_epochs=1).fit(X)
    assert recorder.seen == []  # the fit works on a copy, as with every parameter
    seen = dict(sae.net_.callbacks_)["mine"].seen
    assert [s[:2] for s in seen if isinstance(s, tuple)] == [(True, 100)] * 4
    assert any("decoder_bias" in s for s in seen if isinstance(s, list))
    assert len(sae.history_[-1]["batches"]) == 4


def test_early_stopping_ends_the_fit_normally_and_restores_the_best(X):
    stop = EarlyStopping(
        "explained_variance", patience=2, lower_is_better=False, load_best=True, threshold=10
    )
    stop.sink = lambda *args: None
    sae = topk(nb_epochs=30, callbacks=[stop], validation_fraction=0.2).fit(X)
    assert sae.n_iter_ < 30
    assert np.isfinite(sae.score(X))


def test_epoch_scoring_sees_reconstructions_in_input_units(X):
    def error(net, X, y):
        return float(np.square(net.predict(X) - y).mean())

    scoring = EpochScoring(error, name="error", on_train=True)
    sae = topk(lr=1e-12, nb_epochs=1, callbacks=[scoring]).fit(X)
    expected = np.square(X - sae.inverse_transform(sae.transform(X))).mean()
    assert sae.history_[-1]["error"] == pytest.approx(expected, rel=1e-4)


def test_predict_of_the_net_reconstructs(X):
    sae = topk().fit(X)
    np.testing.assert_allclose(
        sae.net_.predict(X), sae.inverse_transform(sae.transform(X)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("monitor", [None, "train_loss_best", "valid_loss_best"])
def test_checkpoint(X, tmp_path, monitor):
    checkpoint = Checkpoint(monitor=monitor, dirname=str(tmp_path))
    fraction = 0.2 if monitor == "valid_loss_best" else None
    topk(callbacks=[checkpoint], validation_fraction=fraction).fit(X)
    assert (tmp_path / "params.pt").exists()


def test_checkpoint_at_the_end(X, tmp_path):
    topk(callbacks=[TrainEndCheckpoint(dirname=str(tmp_path))]).fit(X)
    assert (tmp_path / "train_end_params.pt").exists()


def test_learning_rate_scheduler_as_a_callback(X):
    scheduler = LRScheduler("StepLR", step_size=1, gamma=0.5)
    sae = topk(callbacks=[scheduler], lr=0.1, scheduler_class=None).fit(X)
    assert sae.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize("callback", [EarlyStopping(), ("stop", EarlyStopping())])
def test_a_callback_that_waits_for_held_out_rows(X, callback):
    with pytest.raises(
        ValueError,
        match="EarlyStopping monitors 'valid_loss', which TopKSAE has only with held-out rows. Set "
        "validation_fraction, or monitor 'train_loss'.",
    ):
        topk(callbacks=[callback]).fit(X)


def test_what_is_no_callback(X):
    with pytest.raises(ValueError, match="must be a list of skorch callbacks, .* Got 3 in it."):
        topk(callbacks=[3]).fit(X)


class Interrupting(Callback):
    """Ctrl-C that lands inside the work of a callback, not raised by its own hook."""

    def on_epoch_end(self, net, **kwargs):
        self.work()

    def work(self):
        raise KeyboardInterrupt


def test_ctrl_c_inside_a_callbacks_work_is_raised_again(X):
    with pytest.raises(KeyboardInterrupt):
        topk(callbacks=[Interrupting()]).fit(X)


# -- optimisation -------------------------------------------------------------------------


def test_optimizer_and_scheduler_classes(X):
    sae = topk(
        optimizer_class=torch.optim.SGD,
        optimizer_params={"momentum": 0.9},
        lr=0.1,
        scheduler_class=torch.optim.lr_scheduler.StepLR,
        scheduler_params={"step_size": 1, "gamma": 0.5},
    ).fit(X)
    group = sae.net_.optimizer_.param_groups[0]
    assert isinstance(sae.net_.optimizer_, torch.optim.SGD)
    assert group["momentum"] == 0.9
    assert group["lr"] == pytest.approx(0.1 * 0.5**8)
    pickle.loads(pickle.dumps(sae)).partial_fit(X)


def test_an_optimizer_that_needs_a_closure(X):
    sae = topk(optimizer_class=torch.optim.LBFGS, lr=0.1, batch_size=400).fit(X)
    assert np.isfinite(sae.score(X))


def test_the_default_optimizer_takes_its_other_forms(X):
    topk(optimizer_params={"foreach": True}).fit(X)


def test_a_learning_rate_among_the_optimizer_params(X):
    with pytest.raises(ValueError, match="'optimizer_params' must not hold another one. Use lr=0"):
        topk(optimizer_params={"lr": 0.5}).fit(X)


def test_a_scheduler_that_needs_a_metric(X):
    with pytest.raises(ValueError, match="stepped after each batch, but ReduceLROnPlateau needs a"):
        topk(scheduler_class=torch.optim.lr_scheduler.ReduceLROnPlateau).fit(X)


class LargestNorm(Callback):
    def __init__(self):
        self.norm = 0.0

    def on_grad_computed(self, net, named_parameters, **kwargs):
        total = math.sqrt(sum(p.grad.square().sum().item() for _, p in named_parameters))
        self.norm = max(self.norm, total)


def test_gradient_clipping(X):
    clipped = topk(clip_grad=1e-3, callbacks=[("norm", LargestNorm())]).fit(X)
    free = topk(callbacks=[("norm", LargestNorm())]).fit(X)
    assert dict(clipped.net_.callbacks_)["norm"].norm <= 1.001e-3
    assert dict(free.net_.callbacks_)["norm"].norm > 1e-3


def test_a_loss_that_is_not_finite_names_its_step(X):
    with pytest.raises(
        FloatingPointError,
        match=r"The loss was not finite at training step 4. Likely causes: a learning rate that is "
        r"too high \(lower lr or set clip_grad\), a criterion that divides by zero, or rows of "
        r"extreme norm in X.",
    ):
        topk(criterion=NaNAt(5)).fit(X)


class NaNAt:
    """A criterion that gives NaN at its n-th call, or at every one from it on."""

    def __init__(self, at, forever=False):
        self.at, self.calls, self.forever = at, 0, forever

    def __call__(self, x, x_hat, pre_codes, codes, dictionary):
        self.calls += 1
        bad = self.calls >= self.at if self.forever else self.calls == self.at
        return (x - x_hat).square().mean() * (float("nan") if bad else 1.0)


def test_a_failed_partial_fit_keeps_the_weights(X):
    sae = topk().fit(X)
    before = copy.deepcopy(sae)
    sae.set_params(criterion=NaNAt(1))
    with pytest.raises(FloatingPointError):
        sae.partial_fit(X)
    np.testing.assert_array_equal(sae.components_, before.components_)
    assert sae.set_params(criterion="mse").partial_fit(X).n_steps_ == before.n_steps_ + 4


def test_a_failed_continuation_leaves_no_trace_in_the_history(X):
    sae = topk().fit(X)
    with pytest.raises(FloatingPointError):
        sae.set_params(criterion=NaNAt(6)).partial_fit(np.tile(X, (2, 1)))
    assert sae.set_params(criterion="mse").partial_fit(X).n_iter_ == 3
    assert np.isfinite(sae.history_[:, "train_loss"]).all()


class Learnt(torch.nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, x_hat, pre_codes, codes, dictionary):
        return (x - x_hat).square().mean() * self.weight.exp()


def test_a_criterion_with_parameters_is_copied_trained_and_kept(X):
    mine = Learnt()
    sae = topk(criterion=mine).fit(X.astype(np.float64))
    assert mine.weight == 1
    learnt = sae.net_.criterion_.reconstruction.weight
    assert learnt.dtype == torch.float64
    assert learnt != 1
    before = learnt.item()
    sae.partial_fit(X)
    assert sae.net_.criterion_.reconstruction.weight is learnt
    assert learnt.item() != before


@pytest.mark.parametrize("criterion", [torch.nn.MSELoss, torch.nn.MSELoss(), lambda x, y: x])
def test_a_criterion_of_other_arguments(X, criterion):
    with pytest.raises(ValueError, match="or a callable .x, x_hat, pre_codes, codes, dictionary.."):
        topk(criterion=criterion).fit(X)


# -- half precision -----------------------------------------------------------------------


@pytest.mark.parametrize("use_amp", [True, "bf16", "fp16"])
@pytest.mark.parametrize("cls", VARIANTS)
def test_half_precision_stays_near_full_precision(X, cls, use_amp):
    """At the default rate, at which weights that are a few steps old would not do."""
    params = {"nb_epochs": 10, "batch_size": 100, "random_state": 0}
    params |= {"top_k": 3} if "top_k" in cls().get_params() else {}
    half, full = (cls(20, use_amp=amp, **params).fit(X) for amp in (use_amp, False))
    assert half.score(X) == pytest.approx(full.score(X), abs=0.02)
    losses = [np.array([e["train_loss"] for e in s.net_.history]) for s in (half, full)]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert half.components_.dtype == np.float32
    assert all(p.dtype == torch.float32 for p in half.module_.parameters())
    assert half.transform(X).dtype == np.float32


class OverflowsInHalf:
    """A criterion that is infinite in half precision only."""

    def __call__(self, x, x_hat, pre_codes, codes, dictionary):
        loss = (x - x_hat).square().mean()
        return loss * float("inf") if codes.dtype != torch.float32 else loss


def test_half_precision_falls_back_batch_by_batch(X):
    with pytest.warns(RuntimeWarning, match="not finite in half precision for 2 batches of this"):
        sae = topk(use_amp=True, criterion=OverflowsInHalf(), max_nan_fallbacks=2, nb_epochs=1).fit(
            X
        )
    exact = topk(criterion=OverflowsInHalf(), nb_epochs=1).fit(X)
    np.testing.assert_allclose(sae.components_, exact.components_, atol=1e-6)


def steep(x, x_hat, pre_codes, codes, dictionary):
    return 1e3 * (x - x_hat).square().sum()


def test_float16_steps_whose_gradients_overflow_are_taken_in_full_precision(X):
    params = {"criterion": steep, "auxk_coefficient": 0, "nb_epochs": 1, "max_nan_fallbacks": 99}
    half, full = (topk(use_amp=amp, **params).fit(X) for amp in ("fp16", False))
    np.testing.assert_allclose(half.components_, full.components_, atol=0.05)
    start = topk(lr=1e-12, **params).fit(X)
    assert np.abs(half.components_ - start.components_).max() > 1e-3


# -- pickles of another device --------------------------------------------------------------


def test_a_cuda_fit_unpickles_without_cuda(X, pretend_cuda):
    sae = topk().fit(X)
    sae.net_.device = "cuda:0"
    with pretend_cuda():
        pickled = pickle.dumps(sae)
    assert b"cuda:0" in pickled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeviceWarning)  # skorch says that it moves to the CPU
        loaded = pickle.loads(pickled)
    np.testing.assert_array_equal(loaded.components_, sae.components_)
    assert (loaded.transform(X) != sae.transform(X)).nnz == 0
    loaded.partial_fit(X)


@pytest.fixture
def pretend_cuda():
    """Within it, storages are pickled under the tag of a CUDA device."""
    import contextlib

    active = []
    torch.serialization.register_package(
        5, lambda storage: "cuda:0" if active else None, lambda storage, location: None
    )

    @contextlib.contextmanager
    def context():
        active.append(True)
        try:
            yield
        finally:
            active.clear()

    yield context
    torch.serialization._package_registry[:] = [
        entry for entry in torch.serialization._package_registry if entry[0] != 5
    ]
