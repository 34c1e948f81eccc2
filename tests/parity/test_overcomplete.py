"""The same weights in overcomplete's classes give the same codes and reconstructions."""

import pytest
import torch

from sksae.modules import (
    BatchTopKModule,
    JumpReLUModule,
    TopKModule,
    VanillaModule,
    load_overcomplete_sae,
)

D, C, N = 6, 15, 8
sae = load_overcomplete_sae()


def pair(ours, theirs, params, their_params):
    torch.manual_seed(0)
    module = ours(D, C, **params).train()
    other = theirs(D, C, **their_params).train()
    other.encoder.load_state_dict(module.encoder.state_dict())
    other.dictionary.load_state_dict(module.dictionary.state_dict())
    return module, other


@pytest.mark.parametrize(
    ("ours", "theirs", "params", "their_params"),
    [
        (VanillaModule, sae.SAE, {}, {}),
        (TopKModule, sae.TopKSAE, {"top_k": 4}, {"top_k": 4}),
        # Theirs counts top_k over the batch, ours per sample.
        (
            BatchTopKModule,
            sae.BatchTopKSAE,
            {"top_k": 2, "threshold_momentum": 0.9},
            {"top_k": 2 * N, "threshold_momentum": 0.9},
        ),
        (
            JumpReLUModule,
            sae.JumpSAE,
            {"kernel": "rectangle", "bandwidth": 0.1},
            {"kernel": "rectangle", "bandwidth": 0.1},
        ),
    ],
)
def test_codes_and_reconstruction(ours, theirs, params, their_params):
    module, other = pair(ours, theirs, params, their_params)
    if hasattr(module, "thresholds"):
        other.thresholds.data.copy_(module.thresholds)
    x = 3 * torch.randn(N, D)
    for mine, theirs_ in zip(module(x), other(x), strict=True):
        assert torch.allclose(mine, theirs_, atol=1e-5)
    if hasattr(module, "running_threshold"):
        module.eval(), other.eval()
        assert torch.allclose(module(x)[1], other(x)[1], atol=1e-5)


def test_rectangle_threshold_gradient_is_theirs_times_the_bandwidth():
    """Theirs divides by the bandwidth twice."""
    params = {"kernel": "rectangle", "bandwidth": 0.1}
    module, other = pair(JumpReLUModule, sae.JumpSAE, params, params)
    other.thresholds.data.copy_(module.thresholds)
    x = 3 * torch.randn(200, D)
    for each in (module, other):
        (each(x)[2] - x).square().sum().backward()
    assert module.thresholds.grad.abs().max() > 0
    assert torch.allclose(module.thresholds.grad, other.thresholds.grad * 0.1, rtol=1e-3, atol=1e-3)
