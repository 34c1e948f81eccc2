"""MatryoshkaModule and its loss against numpy in float64, forwards and back."""

import numpy as np
import pytest
import torch

from sksae.kernels import Workspace
from sksae.losses import SAELoss, mse, prefix_reconstruction
from sksae.modules import BatchTopKModule, MatryoshkaModule

N, D, C, K = 9, 5, 12, 3
PREFIXES, WEIGHTS = (2, 5, C), (3.0, 0.5, 1.0)


def build(cls=MatryoshkaModule, prefixes=PREFIXES, weights=WEIGHTS):
    torch.manual_seed(0)
    own = {"prefixes": prefixes, "prefix_weights": weights} if cls is MatryoshkaModule else {}
    module = cls(D, C, top_k=K, threshold_momentum=0.9, **own).double().train()
    with torch.no_grad():
        module.linear_encoder.weight.add_(0.5 * torch.randn(C, D))
        module.linear_encoder.bias.add_(0.1 * torch.randn(C))
    module.set_units(torch.randn(D, dtype=torch.float64), 1.0)
    module.after_step()  # unit norms in double precision
    return module


@pytest.fixture
def u():
    return 2 * torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference(module, u):
    """Loss and gradients in closed form; the selection is BatchTopK's, over all concepts."""
    linear = module.linear_encoder
    tensors = (linear.weight, linear.bias, module.get_dictionary(), module.decoder_bias)
    W, bias, atoms, b = (t.detach().numpy() for t in tensors)
    pre = (u - b) @ W.T + bias
    active = (pre > 0) & (pre >= np.sort(pre, axis=None)[-K * N])
    z = np.where(active, pre, 0)
    loss, on_z, on_atoms, on_b = 0.0, np.zeros((N, C)), np.zeros((C, D)), np.zeros(D)
    for m, weight in zip(PREFIXES, WEIGHTS, strict=True):
        error = z[:, :m] @ atoms[:m] + b - u
        loss += weight * (error**2).mean()
        slope = 2 * weight * error / (N * D)
        on_z[:, :m] += slope @ atoms[:m].T
        on_atoms[:m] += z[:, :m].T @ slope
        on_b += slope.sum(axis=0)
    on_z *= active
    on_atoms -= (on_atoms * atoms).sum(axis=1, keepdims=True) * atoms
    on_b -= (on_z @ W).sum(axis=0)
    return loss, z, [on_z.T @ (u - b), on_z.sum(axis=0), on_atoms, on_b]


def own_gradients(module):
    linear = module.linear_encoder
    parameters = (linear.weight, linear.bias, module.dictionary._weights, module.decoder_bias)
    return [p.grad.numpy() for p in parameters]


def criterion():
    return SAELoss(mse, reconstruction_terms=[(1.0, prefix_reconstruction)])


def dense_loss(module, u):
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    return criterion()(module, u, u_hat, pre_codes, codes, dictionary), codes


def forward_stored(module, u):
    return module.forward_sparse(
        u, Workspace(torch.empty(len(u), C, dtype=u.dtype)), lambda *_: None
    )


def stored_loss(module, u):
    codes, pre_codes, values, u_hats, error = forward_stored(module, u)
    loss = criterion().sparse(module, u, u_hats, error, codes, pre_codes, values)
    return loss, codes.dense(values.detach())


@pytest.mark.parametrize("compute", [dense_loss, stored_loss])
def test_loss_codes_and_gradients_are_the_papers(compute, u):
    module = build()
    expected, z, gradients = reference(module, u.numpy())
    assert (z != 0).sum() == K * N
    loss, codes = compute(module, u)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(codes.detach().numpy(), z, atol=1e-7)
    for gradient, reference_gradient in zip(own_gradients(module), gradients, strict=True):
        np.testing.assert_allclose(gradient, reference_gradient, atol=1e-7)


def test_stored_reconstructions_are_those_of_the_prefixes(u):
    module = build()
    codes, _, values, u_hats, _ = forward_stored(module, u)
    z = codes.dense(values)
    assert len(u_hats) == len(PREFIXES)
    for m, u_hat in zip(PREFIXES, u_hats, strict=True):
        expected = z[:, :m] @ module.get_dictionary()[:m] + module.decoder_bias
        torch.testing.assert_close(u_hat, expected)


@pytest.mark.parametrize("compute", [dense_loss, stored_loss])
def test_one_prefix_is_batchtopk(compute, u):
    one, plain = build(prefixes=(C,), weights=(1.0,)), build(BatchTopKModule)
    loss, _ = compute(one, u)
    pre_codes, codes, u_hat, dictionary = plain.forward_scaled(u)
    other = SAELoss(mse)(plain, u, u_hat, pre_codes, codes, dictionary)
    assert loss.item() == pytest.approx(other.item(), rel=1e-7)


def test_a_batch_without_active_codes_is_the_bias(u):
    module = build()
    with torch.no_grad():
        module.linear_encoder.bias -= 100
    codes, _, values, u_hats, _ = forward_stored(module, u)
    assert len(values) == 0
    for u_hat in u_hats:
        assert torch.equal(u_hat, module.decoder_bias.expand(N, -1))
    stored, dense = stored_loss(module, u)[0], dense_loss(module, u)[0]
    assert stored.item() == pytest.approx(dense.item())


def test_evaluation_decodes_like_batchtopk(u):
    module, plain = build(), build(BatchTopKModule)
    for m in (module, plain):
        m.encode(u)
        m.eval()
    torch.testing.assert_close(module(u)[-1], plain(u)[-1])
    assert set(module.state_dict()) == set(plain.state_dict())
