"""CrosscoderModule against numpy in float64, forwards and back."""

import re

import numpy as np
import pytest
import torch

from sksae.kernels import Workspace
from sksae.losses import SAELoss, mse
from sksae.modules import CrosscoderModule

N, C, K = 9, 11, 2
WIDTHS, SCALES = (3, 2), (2.0, 40.0)
D = sum(WIDTHS)
COLUMNS = [slice(0, 3), slice(3, 5)]


def build(normalization="l2"):
    torch.manual_seed(0)
    params = {"top_k": K, "threshold_momentum": 0.9}
    params["dictionary_params"] = {"normalization": normalization}
    module = CrosscoderModule(D, C, layer_widths=WIDTHS, **params).double().train()
    with torch.no_grad():
        module.linear_encoder.weight.add_(0.5 * torch.randn(C, D))
        module.linear_encoder.bias.add_(0.2 * torch.randn(C))
        module.dictionary._weights[0, 3:] = 0  # in the first layer alone
    module.set_units(torch.randn(D, dtype=torch.float64), SCALES, (torch.inf, torch.inf))
    module.after_step()
    return module


@pytest.fixture
def module():
    return build()


@pytest.fixture
def u():
    return 2 * torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference(module, u):
    """Loss, codes and gradients in closed form; the ranks have no gradient."""
    linear = module.linear_encoder
    tensors = (linear.weight, linear.bias, module.dictionary.get_dictionary(), module.decoder_bias)
    W, e, atoms, b = (t.detach().numpy() for t in tensors)
    weights = sum(np.linalg.norm(atoms[:, columns], axis=1) for columns in COLUMNS)
    c = u - b
    pre = c @ W.T + e
    ranked = np.maximum(pre, 0) * weights
    kept = (ranked >= np.sort(ranked, axis=None)[-K * N]) & (ranked > 0)
    z = np.where(kept, pre, 0)
    error = z @ atoms + b - u
    slope = 2 * error / (N * D)
    on_pre = np.where(kept, slope @ atoms.T, 0)
    on_atoms = z.T @ slope
    on_atoms -= (on_atoms * atoms).sum(axis=1, keepdims=True) * atoms
    gradients = {"weight": on_pre.T @ c, "bias": on_pre.sum(axis=0), "dictionary": on_atoms}
    gradients["decoder_bias"] = slope.sum(axis=0) - (on_pre @ W).sum(axis=0)
    return (error**2).mean(), z, ranked[kept].min(), gradients


def dense_loss(module, u):
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    return SAELoss(mse)(module, u, u_hat, pre_codes, codes, dictionary), codes


def stored_loss(module, u):
    buffer = Workspace(torch.empty(N, C, dtype=u.dtype))
    codes, pre_codes, values, u_hats, error = module.forward_sparse(u, buffer, lambda *_: None)
    kept = values if codes.kept is None else values * codes.kept
    loss = SAELoss(mse).sparse(module, u, u_hats, error, codes, pre_codes, values)
    return loss, codes.dense(kept.detach())


@pytest.mark.parametrize("compute", [dense_loss, stored_loss])
def test_loss_codes_and_gradients(compute, module, u):
    expected, z, threshold, gradients = reference(module, u.numpy())
    loss, codes = compute(module, u)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(codes.detach().numpy(), z, atol=1e-7)
    assert module.running_threshold.item() == pytest.approx(threshold, rel=1e-7)
    linear = module.linear_encoder
    own = {"weight": linear.weight, "bias": linear.bias, "dictionary": module.dictionary._weights}
    for name, parameter in (own | {"decoder_bias": module.decoder_bias}).items():
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[name], atol=1e-7, err_msg=name)


def test_ranks_differ_from_those_of_batchtopk(module, u):
    ranked = module.encode_scaled(u)[1] != 0
    pre = module.encoder(u - module.decoder_bias)[1]
    unweighted = pre >= pre.flatten().topk(K * N).values.min()
    assert (ranked != unweighted).any()


@pytest.mark.parametrize("normalization", ["l2", "identity"])
def test_input_units(normalization, u):
    module = build(normalization)
    scales = np.repeat(SCALES, WIDTHS)
    x = u * torch.from_numpy(scales)
    _, codes, x_hat = module(x)
    scaled = module.dictionary.get_dictionary().detach().numpy()
    atoms = module.get_dictionary().detach().numpy()
    norms = np.linalg.norm(scaled, axis=1)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), norms)
    longer = np.linalg.norm(scaled * scales, axis=1) / norms
    np.testing.assert_allclose(atoms, scaled * scales / longer[:, None])
    u_hat = module.forward_scaled(u)[2].detach().numpy()
    np.testing.assert_allclose(x_hat.detach().numpy(), u_hat * scales, rtol=1e-7)
    decoded = codes.detach().numpy() @ atoms + module.decoder_bias.detach().numpy() * scales
    np.testing.assert_allclose(decoded, u_hat * scales, rtol=1e-7)
    if normalization == "l2":
        _, z, _, _ = reference(module, u.numpy())
        np.testing.assert_allclose(codes.detach().numpy(), z * longer, atol=1e-7)


def test_evaluation_uses_the_threshold_of_ranks(module, u):
    module.finish([u])
    module.eval()
    codes = module.encode_scaled(u)[1]
    buffer = Workspace(torch.empty(N, C, dtype=u.dtype))
    sparse, values = module.encode_sparse(u * module.input_scale, buffer)
    np.testing.assert_allclose(
        sparse.dense(values).detach().numpy(), (codes * module.code_scale).detach().numpy()
    )
    assert (codes != 0).sum() == K * N
    ranked = (codes * module.weights())[codes != 0]
    assert ranked.min() >= module.running_threshold > 0


def test_layers_are_pulled_in_by_themselves(module):
    module.set_units(torch.zeros(D, dtype=torch.float64), (1.0, 1.0), (2.0, 3.0))
    u = torch.tensor([[4.0, 0, 0, 0, 1], [1, 0, 0, 0, 6]], dtype=torch.float64)
    expected = torch.tensor([[2.0, 0, 0, 0, 1], [1, 0, 0, 0, 3]], dtype=torch.float64)
    assert torch.equal(module.pull_in(u), expected)


def test_scales_of_layers_cannot_be_folded(module):
    with pytest.raises(ValueError, match=re.escape("cannot fold the scales of several layers")):
        module.fold_normalization()
