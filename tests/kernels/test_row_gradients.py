"""Steps of Adam from gradients that are never written out, against torch's own."""

import os

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sksae.kernels import (
    RowGradients,
    SparseCodes,
    _cuda,
    _ops,
    _row_gradients,
    steps_by_rows,
    sum_rows,
)

pytest.importorskip("numba")

N, M, D = 12, 41, 9
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# In Triton's interpreter with blocks of few entries, so that whole ones are added up before, and
# with large ones.
@pytest.fixture(params=[2, 256] if INTERPRETED else [None], autouse=True)
def loops(request, monkeypatch):
    """What computes: the loops for the CPU, or Triton's interpreter as on CUDA devices."""
    if INTERPRETED:
        monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
        monkeypatch.setattr(_row_gradients, "_steps_on_cpu", _row_gradients._steps_on_cuda)
        monkeypatch.setattr(_cuda.compiled(), "_BLOCK", request.param)


def layout(seed):
    """Give codes of which some concepts have none, and one has one in each row."""
    mask = torch.rand(N, M, generator=torch.manual_seed(seed)) < 0.1
    mask[:, 3], mask[:, 5] = True, False
    indptr = torch.zeros(N + 1, dtype=torch.int32)
    indptr[1:] = mask.sum(1).cumsum(0)
    return SparseCodes(indptr, mask.nonzero()[:, 1].int(), M)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("with_part", [False, True])
def test_steps_are_those_of_torch(dtype, tangent, with_part):
    generator = torch.manual_seed(3)
    start = normalize(torch.randn(M, D, dtype=dtype, generator=generator))
    by_rows, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    params = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "fused": True}
    optimizers = [torch.optim.Adam([p], **params) for p in (by_rows, plain)]
    dead = torch.tensor([0, 7, 40])
    for step in range(4):
        codes = layout(step)
        weights = torch.randn(len(codes.columns), dtype=dtype, generator=generator)
        batch = torch.randn(N, D, dtype=dtype, generator=generator)
        gradients = RowGradients()
        gradients.add("dictionary", codes, weights, batch, tangent)
        starts, rows, order = codes.by_concept
        gradient = sum_rows(starts, rows, weights[order], batch)
        assert torch.allclose(gradient, codes.dense(weights).T @ batch, atol=1e-5)
        if tangent:
            gradient -= (gradient * plain).sum(1, keepdim=True).detach() * plain.detach()
        if with_part:
            part = gradients.take("dictionary", by_rows, dead)
            (3 * part.square().sum()).backward()
            gradient[dead] += 6 * by_rows.detach()[dead]
        plain.grad = gradient.detach()
        gradients.step({"dictionary": by_rows}, optimizers[0])
        optimizers[1].step()
        if tangent:
            plain.data.div_(plain.data.norm(dim=1, keepdim=True) + 1e-8)
        assert gradients.normalized == ({"dictionary"} if tangent else set())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(by_rows.detach(), plain.detach(), atol=tolerance)
    states = [o.state[p] for o, p in zip(optimizers, (by_rows, plain), strict=True)]
    for name in ("step", "exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(states[0][name], states[1][name], atol=tolerance)


def test_a_gradient_written_out_gets_its_part():
    """Where the backward pass wrote the gradient, only what is kept apart is added."""
    parameter = torch.nn.Parameter(torch.ones(M, D))
    parameter.grad = torch.zeros(M, D)
    gradients = RowGradients()
    gradients.take("encoder", parameter, torch.tensor([5])).sum().backward()
    gradients.step({"encoder": parameter}, torch.optim.Adam([parameter]))
    assert parameter.grad.sum(1).nonzero().flatten().tolist() == [5]
    assert torch.equal(parameter.detach(), torch.ones(M, D))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW([p]),
        lambda p: torch.optim.Adam([p], weight_decay=0.1),
        lambda p: torch.optim.Adam([p], amsgrad=True),
        lambda p: torch.optim.Adam([p], maximize=True),
        lambda p: torch.optim.SGD([p], lr=0.1),
    ],
)
def test_other_optimizers_have_their_own_steps(optimizer):
    parameter = torch.nn.Parameter(torch.ones(M, D))
    assert steps_by_rows(torch.optim.Adam([parameter]))
    assert not steps_by_rows(optimizer(parameter))
