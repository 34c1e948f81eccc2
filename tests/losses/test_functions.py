"""Losses against plain numpy in float64, gradients included."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sksae.losses import (
    DeadNeuronsReanimationLoss,
    MSELoss,
    SAELoss,
    SAELossClasses,
    TargetL0,
    auxk_loss,
    dead_neurons_reanimation,
    l0_penalty,
    l1_penalty,
    mse,
    resolve_criterion,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x, x_hat = rng.standard_normal((2, 6, 4))
    pre = rng.standard_normal((6, 5))
    pre[:, 2] = -abs(pre[:, 2])
    dictionary = rng.standard_normal((5, 4))
    return [torch.from_numpy(a) for a in (x, x_hat, pre, np.maximum(pre, 0), dictionary)]


def test_mse(batch):
    x, x_hat = batch[0].numpy(), batch[1].numpy()
    assert mse(*batch).item() == pytest.approx(np.mean((x - x_hat) ** 2))


def test_dead_neurons_reanimation_and_its_gradient(batch):
    x, x_hat, pre, codes, dictionary = batch
    pre = pre.clone().requires_grad_()
    loss = dead_neurons_reanimation(x, x_hat, pre, codes, dictionary)
    dead = (codes.numpy() > 0).sum(0) == 0
    assert dead.tolist() == [False, False, True, False, False]
    expected = np.mean((x - x_hat).numpy() ** 2) - 1e-3 * np.mean(pre.detach().numpy() * dead)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    np.testing.assert_allclose(pre.grad.numpy(), np.tile(-1e-3 * dead / 30, (6, 1)))


def test_l1_penalty_and_its_gradient(batch):
    codes, dictionary = batch[3].clone().requires_grad_(), batch[4]
    loss = l1_penalty(codes, dictionary)
    norms = np.linalg.norm(dictionary.numpy(), axis=1)
    expected = (np.abs(batch[3].numpy()) * norms).sum(1).mean() / 4
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    np.testing.assert_allclose(codes.grad.numpy(), np.sign(batch[3].numpy()) * norms / 6 / 4)


def test_l1_penalty_does_not_depend_on_the_batch_size(batch):
    codes, dictionary = batch[3], batch[4]
    assert torch.allclose(l1_penalty(codes.repeat(3, 1), dictionary), l1_penalty(codes, dictionary))


def test_l0_penalty(batch):
    active = (batch[3] > 0).double()
    assert l0_penalty(active).item() == pytest.approx((batch[3].numpy() > 0).sum(1).mean())


def test_enum_has_interpretos_members():
    assert [m.name for m in SAELossClasses] == ["MSE", "DeadNeuronsReanimation"]
    assert SAELossClasses.MSE.value is MSELoss
    assert SAELossClasses.DeadNeuronsReanimation.value is DeadNeuronsReanimationLoss


def test_resolve_criterion(batch):
    def own(x, x_hat, pre_codes, codes, dictionary):
        return x.sum()

    for criterion in ("mse", SAELossClasses.MSE, MSELoss, MSELoss()):
        assert torch.equal(resolve_criterion(criterion, "SAE")(*batch), mse(*batch))
    assert resolve_criterion(own, "SAE") is own


def test_terms_are_weighted_and_left_out_at_zero(batch):
    def term(module, x, x_hat, pre_codes, codes, dictionary):
        return codes.sum()

    def never(module, *tensors):
        raise AssertionError("a term with coefficient 0 is not computed")

    loss = SAELoss(mse, [(0.5, term), (0.0, never)])(None, *batch)
    assert loss.item() == pytest.approx((mse(*batch) + 0.5 * batch[3].sum()).item())


# -- AuxK -----------------------------------------------------------------------------------


def auxk_in_numpy(residual, pre_codes, dictionary, k_aux):
    codes = np.where(pre_codes > 0, pre_codes, 0.1 * pre_codes)
    for row in codes:
        row[np.argsort(-row)[k_aux:]] = 0
    error = residual - codes @ dictionary
    return np.mean(error**2) / np.mean(residual**2), codes, error


@pytest.mark.parametrize("k_aux", [1, 3, 5, 50])
def test_auxk_loss_and_its_gradients(batch, k_aux):
    x, x_hat, pre, _, dictionary = batch
    x_hat, pre, dictionary = (t.clone().requires_grad_() for t in (x_hat, pre, dictionary))
    loss = auxk_loss(x - x_hat, pre, dictionary, k_aux)
    residual = (x - x_hat).detach().numpy()
    weights = dictionary.detach().numpy()
    expected, codes, error = auxk_in_numpy(residual, pre.detach().numpy(), weights, k_aux)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    leak = np.where(pre.detach().numpy() > 0, 1, 0.1)
    slope = -2 * error / error.size / np.mean(residual**2)
    np.testing.assert_allclose(dictionary.grad, codes.T @ slope)
    np.testing.assert_allclose(pre.grad, (slope @ weights.T) * leak * (codes != 0))
    assert x_hat.grad is None


def test_auxk_loss_of_a_perfect_reconstruction_is_zero(batch):
    loss = auxk_loss(torch.zeros(6, 4), torch.ones(6, 5), torch.ones(5, 4), 2)
    assert loss == 0


# -- the target for L0 ------------------------------------------------------------------------


def controlled(l0s, target, time):
    """Give the logarithm of the scale after each batch, one active count per batch."""
    controller = TargetL0().double()
    seen = []
    for l0 in l0s:
        controller.update(torch.tensor(float(l0)), target, time)
        seen.append(controller.log_scale.item())
    return seen


def test_target_l0_follows_its_formula():
    l0s, target, time = [80, 60, 40, 40, 30, 20, 10, 5, 5, 5, 5], 20, 6.0
    log_scale, mean, expected = 0.0, np.log(80), []
    for i, l0 in enumerate(l0s):
        before, mean = mean, 0.9 * mean + 0.1 * np.log(l0)
        error = mean - np.log(target)
        if i + 1 > time / 2:
            log_scale += np.clip(error + time * (mean - before), -1, 1) / time
        expected.append(log_scale)
    assert expected[2] == 0
    assert expected[-1] != 0
    np.testing.assert_allclose(controlled(l0s, target, time), expected, rtol=1e-5)


def test_target_l0_raises_the_penalty_while_too_much_is_active():
    assert controlled([50] * 30, 10, 10)[-1] > 1
    assert controlled([5] * 30, 10, 10)[-1] < -1
    assert controlled([0] * 30, 10, 10)[-1] < -1
    assert controlled([10] * 30, 10, 10)[-1] == pytest.approx(0, abs=1e-6)


def test_penalties_are_scaled_and_the_reconstruction_is_not(batch):
    module = SimpleNamespace(dead_concepts=torch.zeros(0, dtype=torch.int64))
    term = lambda module, *batch: torch.tensor(10.0)  # noqa: E731
    loss = SAELoss(mse, [(0.5, term)], target_l0=3)
    reconstruction = mse(*batch).item()
    loss.warmup = 0.25
    loss.controller.log_scale.fill_(np.log(4))
    assert loss(module, *batch).item() == pytest.approx(reconstruction + 0.25 * 4 * 5)
    loss.target_l0 = None
    assert loss(module, *batch).item() == pytest.approx(reconstruction + 0.25 * 5)
