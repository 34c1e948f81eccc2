"""Learning rate, penalties and windows over a fit, against their written formulas."""

import math

import numpy as np
import pytest
import torch

from sksae import BatchTopKSAE, TopKSAE, VanillaSAE
from sksae.datasets import make_activations
from sksae.modules import BatchTopKModule
from sksae.training import WarmupDecay, auto_lr
from sksae.training._schedule import (
    Length,
    auto_auxk_coefficient,
    auto_dead_after,
    ramp,
    silence_watch,
)


@pytest.fixture(scope="module")
def X():
    return make_activations(400, 10, 20, n_active=2, random_state=0)[0]


@pytest.mark.parametrize("width", [1024, 16384])
@pytest.mark.parametrize("batch", [256, 4096])
@pytest.mark.parametrize("steps", [1500, 300_000])
def test_rate_follows_width_batch_and_length(width, batch, steps):
    expected = 5e-3 * (4096 / width) ** 0.5 * (batch / 1024) ** 0.5 * (1500 / steps) ** 0.25
    assert auto_lr(width, batch, steps) == pytest.approx(min(expected, 1e-2))


def test_a_rate_that_stays_is_a_quarter():
    assert auto_lr(4096, 1024, None) == pytest.approx(auto_lr(4096, 1024, 2000) / 4)
    assert auto_lr(16, 1024, 8) == 1e-2


def test_length():
    fit, open_end = Length(10, 1000, 5), Length(10, 1000, None)
    assert (fit.n_steps, open_end.n_steps) == (50, None)
    assert (fit.steps(0.1), fit.steps(7), open_end.steps(0.1), open_end.steps(0)) == (5, 7, 200, 0)


def test_dead_after_is_a_fiftieth_within_bounds():
    assert auto_dead_after(Length(1000, 1_024_000, 10)) == 204_800
    assert auto_dead_after(Length(10, 10_240, 1)) == 5 * 1024
    assert auto_dead_after(Length(10**6, 1_024_000_000, 10)) == 10_000_000


def test_dead_after_is_at_most_50_firings_of_the_average_concept():
    length = Length(1000, 1_024_000, 10)
    assert auto_dead_after(length, 16 / 4096) == 50 * 256
    assert auto_dead_after(length, 32 / 64) == 8 * 1024
    assert auto_dead_after(Length(30, 30_000, 10), 32 / 64) == 6000
    assert auto_dead_after(length, 32 / 10**6) == 204_800


@pytest.mark.parametrize(
    ("length", "steps"),
    [(Length(10, 100, 12), 24), (Length(1, 100, 1), 1), (Length(10**5, 10**8, 1), 8000)],
)
def test_silence_is_watched_for_a_fifth_of_the_steps_within_bounds(length, steps):
    assert silence_watch(length) == steps
    assert silence_watch(Length(length.n_batches, length.n_rows, None)) == 400


@pytest.mark.parametrize(
    ("params", "before", "after"),
    [
        ({}, 400, 200),  # a fiftieth of 20,000 rows; 50 * 16 / 4
        ({"topk_start": 0}, 200, 200),
        ({"top_k": 1}, 400, 400),
        ({"dead_after": 300}, 300, 300),
    ],
)
def test_concepts_are_revived_sooner_once_sparsity_is_chosen(X, monkeypatch, params, before, after):
    asked = []
    find = BatchTopKModule.find_dead
    monkeypatch.setattr(
        BatchTopKModule, "find_dead", lambda self, n: (asked.append(n), find(self, n))
    )
    rows = np.tile(X, (1000 // len(X) + 1, 1))[:1000]
    shared = {"top_k": 4, "batch_size": 20, "nb_epochs": 20, "device": "cpu", "random_state": 0}
    sae = BatchTopKSAE(16, **shared | params).fit(rows)
    watched = sae.n_steps_ // 5
    assert asked[:watched] == [before] * watched
    assert asked[watched:] == [after] * (sae.n_steps_ - watched)


@pytest.mark.parametrize(
    ("steps", "expected"), [(200, 1 / 32), (5000, 1 / 32), (150, 1 / 18), (100, 1 / 8), (1, 1 / 8)]
)
def test_short_fits_weigh_dead_concepts_more(steps, expected):
    assert auto_auxk_coefficient(Length(steps, steps, 1)) == pytest.approx(expected)
    assert auto_auxk_coefficient(Length(1, 1, steps)) == pytest.approx(expected)
    assert auto_auxk_coefficient(Length(steps, steps, None)) == 1 / 32


def test_the_weight_of_dead_concepts_follows_the_fit(X):
    X = X[:120]
    sae = TopKSAE(20, top_k=2, batch_size=1, nb_epochs=1, device="cpu", random_state=0).fit(X)
    assert sae.net_.criterion_.auxk_coefficient == pytest.approx((200 / 120) ** 2 / 32)
    sae.set_params(warm_start=True, nb_epochs=2).fit(X)
    assert sae.net_.criterion_.auxk_coefficient == 1 / 32
    sae.set_params(auxk_coefficient=0.5).partial_fit(X)
    assert sae.net_.criterion_.auxk_coefficient == 0.5


def test_ramp():
    assert [ramp(i, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert ramp(0, 0) == 1


def rates(n_steps, taken, **params):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = WarmupDecay(optimizer, n_steps, **params)
    seen = []
    for _ in range(taken):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_then_a_straight_line_to_zero():
    seen = rates(100, 101)
    assert seen[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert seen[50] == pytest.approx(2 * 50 / 95)
    assert seen[99] == pytest.approx(2 / 95)
    assert seen[100] == 0


def test_warm_up_is_at_most_a_thousand_steps():
    assert WarmupDecay(torch.optim.SGD([torch.zeros(1)], lr=1), 10**6).warmup_steps == 1000


def test_an_open_end_keeps_the_rate():
    seen = rates(None, 300)
    assert seen[0] == pytest.approx(2 / 100)
    assert set(seen[99:]) == {2.0}


def test_own_warm_up_and_decay():
    assert rates(10, 10, warmup_steps=0, decay_steps=2) == pytest.approx([2.0] * 9 + [1.0])
    assert rates(10, 10, decay_steps=0, warmup_steps=1) == [2.0] * 10


def learning_rates(sae):
    return [b["lr"] for e in sae.history_ for b in e["batches"] if "lr" in b]


def test_every_fit_has_its_whole_schedule(X):
    sae = TopKSAE(20, top_k=2, nb_epochs=5, batch_size=40, monitoring=1, warm_start=True)
    sae.fit(X)
    seen = learning_rates(sae)
    assert len(seen) == 50
    assert max(seen) == pytest.approx(auto_lr(20, 40, 50))
    assert seen[-1] < 0.05 * max(seen)
    sae.fit(X)
    assert max(learning_rates(sae)[50:]) == pytest.approx(max(seen))


def test_partial_fit_keeps_a_constant_rate_after_one_warm_up(X):
    sae = TopKSAE(20, top_k=2, batch_size=40, monitoring=1)
    for _ in range(15):
        sae.partial_fit(X)
    seen = learning_rates(sae)
    peak = auto_lr(20, 40, None)
    assert seen == pytest.approx([peak * min(1, (i + 1) / 100) for i in range(150)])


def test_no_scheduler_means_a_constant_rate(X):
    sae = TopKSAE(20, top_k=2, nb_epochs=2, monitoring=1, scheduler_class=None).fit(X)
    assert set(learning_rates(sae)) == {auto_lr(20, 400, None)}


def test_penalties_grow_over_the_sparsity_warm_up(X):
    off = VanillaSAE(20, nb_epochs=1, batch_size=40, sparsity_warmup=10**6, random_state=0).fit(X)
    none = VanillaSAE(20, nb_epochs=1, batch_size=40, l1_coefficient=0, random_state=0).fit(X)
    assert off.history_[-1]["train_loss"] == pytest.approx(
        none.history_[-1]["train_loss"], rel=1e-3
    )
    assert math.isclose(off.net_.criterion_.warmup, 10 / 10**6)
    half = VanillaSAE(20, nb_epochs=1, batch_size=40, sparsity_warmup=20, random_state=0).fit(X)
    assert half.net_.criterion_.warmup == 0.5
    half.partial_fit(X[:200])  # goes on, and does not begin again
    assert half.net_.criterion_.warmup > 0.5 * 20 / 100
    assert half.net_.n_steps_ == 15


@pytest.mark.parametrize("cls", [TopKSAE, VanillaSAE])
def test_chunks_of_changing_size_do_not_begin_again(X, cls):
    sae = cls(20, monitoring=1, **({"top_k": 2} if cls is TopKSAE else {}))
    for i in range(30):
        sae.partial_fit(X[: 300 + i % 2])
    seen = learning_rates(sae)
    peak = auto_lr(20, 1024, None)
    assert seen == pytest.approx([peak * (i + 1) / 100 for i in range(30)])


def test_scheduler_params_without_a_scheduler(X):
    with pytest.raises(ValueError, match="has no scheduler to go to: scheduler_class is None."):
        TopKSAE(20, top_k=2, scheduler_class=None, scheduler_params={"warmup_steps": 1}).fit(X)
