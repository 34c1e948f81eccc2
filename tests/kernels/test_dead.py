"""The compiled auxiliary loss against the formula under plain autograd."""

import numpy as np
import pytest
import torch

from sksae.kernels import _cuda, _dead, dead_loss, has_dead_loss
from sksae.losses import auxk_loss
from sksae.losses._functions import LEAK

pytestmark = pytest.mark.skipif(
    not has_dead_loss(torch.device("cpu")), reason="Numba is not installed"
)


def batch(n, n_dead, d=24, n_inputs=24, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, n_inputs), (n_dead, n_inputs), (n_dead,), (n_dead, d), (n, d), (n, d)]
    tensors = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    for parameter in tensors[1:4]:
        parameter.requires_grad_()
    return tensors


def plain(c, weight, bias, dictionary, target, x_hat, k):
    pre_codes = torch.nn.functional.linear(c, weight, bias)
    return auxk_loss(target - x_hat, pre_codes, dictionary, k)


def compiled(c, weight, bias, dictionary, target, x_hat, k):
    return dead_loss(c, (weight, bias), dictionary, target, x_hat, k, LEAK)


def both(tensors, k):
    parameters = tensors[1:4]
    losses = [compute(*tensors, k) for compute in (compiled, plain)]
    return losses, [torch.autograd.grad(3 * loss, parameters) for loss in losses]


@pytest.fixture
def on_cuda(monkeypatch):
    """Compute on the CPU as on CUDA devices, without Triton."""
    monkeypatch.setattr(_dead, "_way", lambda device, k, n_dead: _dead._sums_on_device)
    monkeypatch.setattr(_cuda, "compiled", lambda: None)


@pytest.fixture(params=[1, 2, "cuda"])
def how(request):
    """How many threads compute, or that it is done as on CUDA devices."""
    if request.param == "cuda":
        request.getfixturevalue("on_cuda")
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# The last four go by the stored codes alone.
SIZES = [(50, 40, 7), (7, 5, 9), (1, 1, 1), (33, 12, 12)]
SIZES += [(50, 300, 7), (600, 48, 12), (1, 4, 1), (300, 90, 1)]


@pytest.mark.parametrize(("n", "n_dead", "k"), SIZES)
def test_loss_and_gradients(n, n_dead, k, how):
    (loss, expected), (gradients, plain_gradients) = both(batch(n, n_dead), k)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for gradient, reference in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("by", [-50.0, 50.0])
def test_whatever_the_sign_of_the_pre_codes(by):
    tensors = batch(20, 60)
    with torch.no_grad():
        tensors[2] += by
    (loss, expected), (gradients, plain_gradients) = both(tensors, 6)
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-10)


def test_many_dead_concepts_in_float32():
    """With pre-codes found in small integers, where the processor is made for them."""
    tensors = batch(300, 1100, d=70, n_inputs=70, dtype=torch.float32)
    (loss, expected), (gradients, plain_gradients) = both(tensors, 30)
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, plain_gradients, strict=True):
        assert (gradient - reference).norm() < 1e-3 * reference.norm()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2, 4])
def test_what_is_not_finite_stays_so(value, which):
    tensors = batch(20, 60)
    with torch.no_grad():
        tensors[which].view(-1)[0] = value
    assert not compiled(*tensors, 6).isfinite()


def test_in_float32_and_with_a_target_of_another_width():
    tensors = batch(64, 30, d=10, dtype=torch.float32)
    (loss, expected), (gradients, plain_gradients) = both(tensors, 6)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_of_equal_pre_codes_as_many_count_as_asked_for():
    tensors = batch(4, 6)
    with torch.no_grad():
        tensors[1].zero_()
        tensors[2].fill_(0.5)
        tensors[3].copy_(tensors[3][:1].expand(6, -1))  # so that it does not matter which
    losses, _ = both(tensors, 3)
    torch.testing.assert_close(*losses)


def test_without_a_residual_it_is_zero_and_has_no_gradient():
    tensors = batch(5, 4)
    tensors[5] = tensors[4]
    losses, gradients = both(tensors, 2)
    assert losses[0] == losses[1] == 0
    assert all((g == 0).all() for each in gradients for g in each)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_what_is_frozen_gets_no_gradient(frozen):
    tensors = batch(20, 9)
    (expected,) = both(tensors, 4)[1][1:]
    tensors[frozen].requires_grad_(False)
    compiled(*tensors, 4).mul(3).backward()
    for i, reference in zip((1, 2, 3), expected, strict=True):
        if i == frozen:
            assert tensors[i].grad is None
        else:
            torch.testing.assert_close(tensors[i].grad, reference)


def test_rows_need_not_lie_together():
    tensors = batch(30, 8)
    expected = compiled(*tensors, 3)
    for i in (0, 4, 5):
        tensors[i] = tensors[i].T.contiguous().T
    torch.testing.assert_close(compiled(*tensors, 3), expected)


def test_what_is_not_a_number_is_not_hidden():
    tensors = batch(6, 5)
    tensors[0][2, 3] = np.nan
    assert compiled(*tensors, 2).isnan()


@pytest.mark.parametrize("k", [3, 12, 30])
def test_places_of_none_change_nothing(k, on_cuda):
    """Neither the loss, nor the gradients of the others; their own are zero."""
    tensors = batch(20, 12)
    _, (few, _) = both(tensors, k)
    c, weight, bias, dictionary, target, x_hat = batch(20, 12)
    more = [torch.cat([t, t[:5]]).detach() for t in (weight, bias, dictionary)]
    more[1][12:] = -torch.inf
    more = [t.requires_grad_() for t in more]
    loss = compiled(c, *more, target, x_hat, k)
    torch.testing.assert_close(loss, compiled(*tensors, k))
    gradients = torch.autograd.grad(3 * loss, more)
    for gradient, before in zip(gradients, few, strict=True):
        torch.testing.assert_close(gradient[:12], before)
        assert not gradient[12:].any()


def test_in_autocast_gradients_are_those_of_rounded_products(on_cuda):
    tensors = batch(64, 40, dtype=torch.float32)
    _, (exact, _) = both(tensors, 7)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compiled(*tensors, 7)
    gradients = torch.autograd.grad(3 * loss, tensors[1:4])
    for gradient, reference in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.1 * reference.norm()
