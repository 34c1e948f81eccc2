"""The kernels for CUDA devices where there is none: what they read and where tensors lie.

Tensors on torch's device "meta" have no values, so that a step that runs on them reads none.
"""

import os
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sksae import kernels
from sksae.kernels import Workspace, _cuda, _ops
from sksae.losses import SAELoss, mse
from sksae.modules import BatchTopKModule, JumpReLUModule, TopKModule
from sksae.training._totals import EpochTotals

N, M, D, K = 12, 40, 6, 3


@pytest.fixture
def plain(monkeypatch):
    """Compute everywhere as on CUDA devices; in plain torch, if not in Triton's interpreter."""
    monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
    if os.environ.get("TRITON_INTERPRET") != "1":
        monkeypatch.setattr(_cuda, "compiled", lambda: None)


def take_step(module, optimizer):
    """Do on a device what a training step does between two reads."""
    loss_of = SAELoss(mse, auxk_coefficient=0.1)
    u = module.pull_in(torch.randn(N, D, device="meta") / module.input_scale)
    buffer = Workspace(torch.empty(N, M, device="meta"))
    codes, pre_codes, values, u_hats, error = module.forward_sparse(u, buffer, lambda *sizes: None)
    loss = loss_of.sparse(module, u, u_hats, error, codes, pre_codes, values)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    module.after_step()
    module.count_fired(codes.fired(values), N)
    totals = EpochTotals(module, torch.device("meta"))
    active = torch.count_nonzero(values)
    totals.add(
        {"target": u, "y_pred": u_hats[-1].detach(), "loss": loss.detach(), "n_active": active}
    )


@pytest.mark.parametrize(
    "cls, params", [(TopKModule, {}), (BatchTopKModule, {"threshold_momentum": 0.9})]
)
def test_a_step_reads_no_value(cls, params, plain):
    module = cls(D, M, top_k=K, **params).train().to("meta")
    module.dead_concepts = torch.zeros(5, dtype=torch.int64, device="meta")
    take_step(module, torch.optim.Adam(module.parameters()))
    with pytest.raises(NotImplementedError, match="nonzero"):  # that a read would be seen
        module.find_dead(3)


def test_where_the_number_of_codes_depends_on_values_it_is_read(plain):
    module = JumpReLUModule(D, M, kernel="rectangle", bandwidth=0.1).train().to("meta")
    with pytest.raises(NotImplementedError, match="nonzero"):
        take_step(module, torch.optim.Adam(module.parameters()))


def test_results_are_on_the_device():
    """Of tensors that say they are on a CUDA device."""
    with FakeTensorMode():
        pre, table = torch.randn(N, M, device="cuda"), torch.randn(M, D, device="cuda")
        expected = torch.tensor(torch.nan, device="cuda")
        for codes, values, *_ in (_cuda.top_k(pre, K), _cuda.largest(pre, N * K, expected)):
            sums = _cuda._gathers.sum_rows(codes.indptr, codes.columns, values, table)
            products = _cuda._gathers.products(codes, sums, table)
            starts, rows, order = codes.by_concept
            tensors = [codes.kept, sums, products, starts, rows, order, codes.fired(values)]
            assert {x.device for x in tensors} == {torch.device("cuda:0")}


def test_without_triton_or_with_one_that_does_not_run(monkeypatch):
    """The second is how it is here, unless there is a CUDA device."""
    _cuda._find.cache_clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    try:
        assert _cuda.compiled() is None
        assert _cuda.name().startswith("stored codes only, torch's gathers, as Triton ")
        device = torch.device("cuda")
        assert kernels.serves("cuda", device) and not kernels.serves("auto", device)
        _cuda._find.cache_clear()
        monkeypatch.delattr(kernels, "_triton", raising=False)
        monkeypatch.setitem(sys.modules, "sksae.kernels._triton", None)
        assert _cuda.name() == "stored codes only, torch's gathers, as Triton is not installed"
    finally:
        _cuda._find.cache_clear()


def test_who_is_served(monkeypatch):
    devices = [torch.device(kind) for kind in ("cpu", "cuda", "mps")]
    monkeypatch.setattr(_cuda, "compiled", lambda: _cuda)
    assert [kernels.serves("auto", device) for device in devices] == [True, True, False]
    assert [kernels.serves("cuda", device) for device in devices] == [False, True, False]
    assert not any(kernels.serves("reference", device) for device in devices)


def test_kernels_are_those_of_the_device():
    assert _ops.module_for(torch.device("cuda:1")) is _cuda
    assert _ops.module_for(torch.device("cpu")) is _ops.module_for(torch.device("mps"))


def test_a_product_in_bfloat16_leaves_the_rest_in_full_precision(plain):
    """Where the product is exact in bfloat16, so is everything."""
    results = []
    for precision in (torch.float32, torch.bfloat16):
        module = TopKModule(D, M, top_k=K).train()
        with torch.no_grad():
            digits = torch.arange(M * D) * 7919 % 17
            module.linear_encoder.weight.copy_(digits.reshape(M, D) / 16)
            module.dictionary._weights.copy_(torch.nn.functional.normalize(torch.ones(M, D)))
        u = torch.eye(D)  # each pre-code is one weight
        buffer = Workspace(torch.empty(D, M, dtype=precision))
        codes, _, values, (u_hat,), error = module.forward_sparse(u, buffer, lambda *sizes: None)
        assert values.dtype == u_hat.dtype == torch.float32
        error.backward()
        results.append([values.detach(), u_hat.detach(), *(p.grad for p in module.parameters())])
    for full, half in zip(*results, strict=True):
        assert torch.equal(full, half)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_top_k_in_half_precision(precision, plain):
    pre = (torch.randn(3, 131, generator=torch.manual_seed(0)) * 100).to(precision)  # with ties
    codes, values = _cuda.top_k(pre, 20)
    kept = codes.dense(values)
    assert values.dtype == precision
    assert torch.equal(values.reshape(3, 20).sort().values, pre.relu().topk(20).values.flip(1))
    assert torch.equal(kept, pre * (kept > 0))
