"""Losses against plain numpy in float64, gradients included."""

import numpy as np
import pytest
import torch

from sksae.losses import (
    DeadNeuronsReanimationLoss,
    MSELoss,
    SAELoss,
    SAELossClasses,
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
