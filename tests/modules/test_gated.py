"""GatedModule and its loss against numpy in float64, forwards and back, written from the paper."""

import numpy as np
import pytest
import torch

from sksae.kernels import Workspace
from sksae.losses import SAELoss, gate_l1, gate_reconstruction, mse
from sksae.modules import GatedModule

N, D, C = 9, 5, 11
PENALTY = 0.7


@pytest.fixture
def module():
    """A module whose gates and magnitudes disagree about some codes."""
    torch.manual_seed(0)
    module = GatedModule(D, C).double().train()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dictionary" not in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    module.set_units(torch.randn(D, dtype=torch.float64), 1.0)
    module.after_step()  # unit norms in double precision
    return module


@pytest.fixture
def u():
    return 2 * torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def numbers(module):
    """Encoder, gate bias, r_mag, b_mag, dictionary and decoder bias as arrays."""
    linear = module.linear_encoder
    tensors = (linear.weight, linear.bias, module.r_mag, module.b_mag)
    tensors += (module.get_dictionary(), module.decoder_bias)
    return [t.detach().numpy() for t in tensors]


def reference(module, u):
    """Loss, codes and gradients in closed form; both decoders of the auxiliary task are frozen."""
    W, b_gate, r, b_mag, atoms, b = numbers(module)
    c = u - b
    a = c @ W.T
    gates, magnitudes = a + b_gate, np.exp(r) * a + b_mag
    opened = gates > 0
    active = opened & (magnitudes > 0)
    z, v = np.where(active, magnitudes, 0), np.where(opened, gates, 0)
    error, gate_error = z @ atoms + b - u, v @ atoms + b - u
    loss = (error**2).mean() + (gate_error**2).mean() + PENALTY * v.sum() / (N * D)
    slope, gate_slope = 2 * error / (N * D), 2 * gate_error / (N * D)
    on_z = np.where(active, slope @ atoms.T, 0)
    on_gates = np.where(opened, gate_slope @ atoms.T + PENALTY / (N * D), 0)
    on_a = on_z * np.exp(r) + on_gates
    on_atoms = z.T @ slope
    on_atoms -= (on_atoms * atoms).sum(axis=1, keepdims=True) * atoms
    gradients = {
        "weight": on_a.T @ c,
        "bias": on_gates.sum(axis=0),
        "r_mag": (on_z * np.exp(r) * a).sum(axis=0),
        "b_mag": on_z.sum(axis=0),
        "dictionary": on_atoms,
        "decoder_bias": slope.sum(axis=0) - (on_a @ W).sum(axis=0),
    }
    return loss, z, gradients


def own_gradients(module):
    linear = module.linear_encoder
    named = {"weight": linear.weight, "bias": linear.bias, "r_mag": module.r_mag}
    named |= {"b_mag": module.b_mag, "dictionary": module.dictionary._weights}
    return {name: p.grad.numpy() for name, p in named.items()} | {
        "decoder_bias": module.decoder_bias.grad.numpy()
    }


def criterion():
    return SAELoss(mse, [(PENALTY, gate_l1)], reconstruction_terms=[(1.0, gate_reconstruction)])


def dense_loss(module, u):
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    return criterion()(module, u, u_hat, pre_codes, codes, dictionary), codes


def stored_loss(module, u):
    buffer = Workspace(torch.empty(N, C, dtype=u.dtype))
    codes, pre_codes, values, u_hats, error = module.forward_sparse(u, buffer, lambda *_: None)
    loss = criterion().sparse(module, u, u_hats, error, codes, pre_codes, values)
    return loss, codes.dense(values.detach())


@pytest.mark.parametrize("compute", [dense_loss, stored_loss])
def test_loss_codes_and_gradients_are_the_papers(compute, module, u):
    expected, z, gradients = reference(module, u.numpy())
    gates = (u - module.decoder_bias).detach().numpy() @ numbers(module)[0].T + numbers(module)[1]
    assert 0 < ((gates > 0) & (z == 0)).sum()  # open gates without a magnitude
    loss, codes = compute(module, u)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(codes.detach().numpy(), z, atol=1e-7)
    for name, gradient in own_gradients(module).items():
        np.testing.assert_allclose(gradient, gradients[name], atol=1e-7, err_msg=name)


def test_a_warmed_up_or_steered_penalty_leaves_the_auxiliary_loss_alone(module, u):
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    batch = (module, u, u_hat, pre_codes, codes, dictionary)
    loss = criterion()
    loss.warmup = 0.0
    expected = mse(u, u_hat) + gate_reconstruction(*batch)
    assert loss(*batch).item() == pytest.approx(expected.item(), rel=1e-7)


def test_fresh_gates_and_magnitudes_agree():
    module = GatedModule(D, C)
    u = torch.randn(N, D)
    gates, codes = module.encode_scaled(u)
    assert torch.allclose(codes, gates.relu())
    assert torch.allclose(gates, u @ module.get_dictionary().T, atol=1e-6)


def test_codes_are_those_of_a_jumprelu_with_its_thresholds(module, u):
    W, _, r, b_mag, _, b = numbers(module)
    magnitudes = np.exp(r) * ((u.numpy() - b) @ W.T) + b_mag
    expected = magnitudes * (magnitudes > module.thresholds().detach().numpy())
    np.testing.assert_allclose(module.encode(u)[1].detach().numpy(), expected, atol=1e-7)


def test_penalty_weighs_norms_that_are_not_one_as_constants(u):
    module = GatedModule(D, C, dictionary_params={"normalization": "identity"}).double()
    with torch.no_grad():
        module.dictionary._weights.mul_(torch.arange(1.0, C + 1)[:, None])
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    loss = gate_l1(module, u, u_hat, pre_codes, codes, dictionary)
    norms = np.linalg.norm(dictionary.detach().numpy(), axis=1)
    expected = (np.maximum(pre_codes.detach().numpy(), 0) @ norms).mean() / D
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    loss.backward()
    assert module.dictionary._weights.grad is None


def test_a_frozen_dictionary_gets_no_gradient_from_stored_gates(module, u):
    buffer = Workspace(torch.empty(N, C, dtype=u.dtype))
    codes, gates, *_ = module.forward_sparse(u, buffer, lambda *_: None)
    module.decode_frozen(codes, gates).square().sum().backward()
    assert module.dictionary._weights.grad is None
    assert module.linear_encoder.weight.grad.abs().max() > 0
    assert module.r_mag.grad is None
