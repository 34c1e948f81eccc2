"""TranscoderModule and its loss against numpy in float64, forwards and back."""

import numpy as np
import pytest
import torch

from sksae.kernels import Workspace
from sksae.losses import SAELoss, mse
from sksae.modules import TranscoderModule

N, D, P, C, K = 9, 5, 4, 11, 3
DEAD, K_AUX, AUXK = [2, 7, 8], 2, 0.3


@pytest.fixture(params=[False, True], ids=["plain", "skip"])
def module(request):
    torch.manual_seed(0)
    module = TranscoderModule(D, C, top_k=K, n_outputs=P, skip=request.param).double().train()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dictionary" not in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    module.set_units(torch.randn(D, dtype=torch.float64), 3.0)
    module.set_output_units(torch.randn(P, dtype=torch.float64), 0.2)
    module.after_step()
    return module


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(N, d, dtype=torch.float64, generator=generator) for d in (D, P)]


def arrays(module):
    linear = module.linear_encoder
    skip = torch.zeros(P, D) if module.skip_weight is None else module.skip_weight
    tensors = (linear.weight, linear.bias, module.get_dictionary(), module.decoder_bias, skip)
    return [t.detach().numpy() for t in (*tensors, module.center)]


def reference(module, u, v):
    """Loss, codes, prediction and gradients of mean((v - z D - b - S (u - c))^2) + AuxK."""
    W, e, atoms, b, S, center = arrays(module)
    c = u - center
    pre = c @ W.T + e
    kept = (pre >= np.sort(pre, axis=1)[:, [-K]]) & (pre > 0)
    z = np.where(kept, pre, 0)
    v_hat = z @ atoms + b + c @ S.T
    error = v_hat - v
    slope = 2 * error / (N * P)
    on_pre = np.where(kept, slope @ atoms.T, 0)
    on_atoms = z.T @ slope
    # Dead concepts explain the residual of the target, which is a constant to them.
    dead = pre[:, DEAD]
    leaky = np.where(dead > 0, dead, 0.1 * dead)
    used = leaky >= np.sort(leaky, axis=1)[:, [-K_AUX]]
    rest = -error - np.where(used, leaky, 0) @ atoms[DEAD]
    size = (error**2).mean()
    loss = (error**2).mean() + AUXK * (rest**2).mean() / size
    aux_slope = -2 * AUXK * rest / (N * P * size)
    on_dead = np.where(used, aux_slope @ atoms[DEAD].T, 0) * np.where(dead > 0, 1, 0.1)
    on_pre[:, DEAD] += on_dead
    on_atoms[DEAD] += np.where(used, leaky, 0).T @ aux_slope
    on_atoms -= (on_atoms * atoms).sum(axis=1, keepdims=True) * atoms
    gradients = {"weight": on_pre.T @ c, "bias": on_pre.sum(axis=0), "dictionary": on_atoms}
    gradients |= {"decoder_bias": slope.sum(axis=0), "skip": slope.T @ c}
    return loss, z, v_hat, gradients


def dense_loss(module, u, v):
    pre_codes, codes, v_hat, dictionary = module.forward_scaled(u)
    loss = SAELoss(mse, [], AUXK, K_AUX)(module, v, v_hat, pre_codes, codes, dictionary, u)
    return loss, codes, v_hat


def stored_loss(module, u, v):
    buffer = Workspace(torch.empty(N, C, dtype=u.dtype))
    codes, pre_codes, values, v_hats, error = module.forward_sparse(u, buffer, lambda *_: None, v)
    loss = SAELoss(mse, [], AUXK, K_AUX).sparse(
        module, v, v_hats, error, codes, pre_codes, values, u
    )
    return loss, codes.dense(values.detach()), v_hats[-1]


@pytest.mark.parametrize("compute", [dense_loss, stored_loss])
def test_loss_codes_and_gradients(compute, module, batch):
    u, v = batch
    module.dead_concepts = torch.tensor(DEAD)
    expected, z, v_hat, gradients = reference(module, u.numpy(), v.numpy())
    loss, codes, found = compute(module, u, v)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(codes.detach().numpy(), z, atol=1e-7)
    np.testing.assert_allclose(found.detach().numpy(), v_hat, atol=1e-7)
    linear = module.linear_encoder
    own = {"weight": linear.weight, "bias": linear.bias, "dictionary": module.dictionary._weights}
    own["decoder_bias"] = module.decoder_bias
    own |= {"skip": module.skip_weight} if module.skip else {}
    for name, parameter in own.items():
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[name], atol=1e-7, err_msg=name)


def test_units_of_both_sides(module, batch):
    x, _ = batch
    _, codes, y_hat = module(x)
    _, z, v_hat, _ = reference(module, x.numpy() / 3.0, np.zeros((N, P)))
    np.testing.assert_allclose(codes.detach().numpy(), 0.2 * z, atol=1e-7)
    np.testing.assert_allclose(y_hat.detach().numpy(), 0.2 * v_hat, atol=1e-7)
    skipped = 0 if module.skip_weight is None else module.offset(x) - 0.2 * module.decoder_bias
    assert torch.allclose(module.decode(codes) + skipped, y_hat)


def test_folded_weights_predict_the_same(module, batch):
    x, _ = batch
    folded = module.fold_normalization()
    assert folded.input_scale == folded.output_scale == 1
    for one, other in zip(folded(x), module(x), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_far_targets_come_nearer(module):
    module.set_output_units(torch.ones(P, dtype=torch.float64), 2.0, 3.0)
    v = module.target_center + torch.tensor([[4.0, 0, 0, 0], [1.0, 0, 0, 0]], dtype=torch.float64)
    expected = module.target_center + torch.tensor([[1.5, 0, 0, 0], [1.0, 0, 0, 0]])
    assert torch.allclose(module.pull_in_target(v), expected.double())


def test_skip_starts_at_the_regression():
    generator = np.random.default_rng(0)
    x, slope = generator.standard_normal((50_000, D)), generator.standard_normal((P, D))
    module = TranscoderModule(D, C, top_k=K, n_outputs=P, skip=True).double()
    module.set_units(torch.full((D,), 0.3), 5.0)
    module.set_output_units(torch.zeros(P), 0.1)
    x, slope = torch.from_numpy(x), torch.from_numpy(slope)
    x = x - x.mean(dim=0) + 0.3
    module.start_skip(x, (x - 0.3) @ slope.T)
    assert torch.allclose(module.skip_weight * 0.1 / 5.0, slope, atol=1e-3)
    module.start_skip(x[:2], (x[:2] - 0.3) @ slope.T)  # few rows: shrunk, and finite
    assert (module.skip_weight * 0.1 / 5.0).norm() < slope.norm()
    module.start_skip(torch.full((4, D), 0.3), torch.zeros(4, P))
    assert module.skip_weight.norm() == 0
