"""On a CUDA device: the same numbers as on the CPU, and the way back to the CPU."""

import os
import pickle
import re
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from skorch.callbacks import Callback

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    Extractor,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    Transcoder,
    VanillaSAE,
    fit_many,
)
from sksae.datasets import make_activations
from sksae.intervention import spliced_loss
from sksae.kernels import (
    RowGradients,
    Workspace,
    _cuda,
    _gathers,
    dead_loss,
    has_dead_loss,
    steps_by_rows,
)
from sksae.losses import auxk_loss
from sksae.losses._functions import LEAK
from sksae.modules import TopKModule
from sksae.training import SAENet
from sksae.training._data import RowBatches
from sksae.training._totals import EpochTotals

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

_triton = pytest.importorskip("sksae.kernels._triton")

VARIANTS = [
    VanillaSAE,
    TopKSAE,
    BatchTopKSAE,
    JumpReLUSAE,
    GatedSAE,
    MatryoshkaSAE,
    MatchingPursuitSAE,
    ArchetypalSAE,
]

ON_STORED_CODES = [cls for cls in VARIANTS if cls is not MatchingPursuitSAE]


@pytest.fixture(scope="module")
def X():
    return make_activations(2000, 16, 32, n_active=4, noise=0.05, offset=1.0, random_state=0)[0]


def make(cls, **params):
    params = {"nb_epochs": 5, "batch_size": 256, "random_state": 0} | params
    return cls(48, **({"top_k": 4} if "top_k" in cls().get_params() else {}), **params)


@pytest.mark.parametrize("cls", VARIANTS)
def test_auto_is_cuda_and_equals_the_cpu(cls, X):
    """In float64, so that rounding does not decide which code is active.

    Without AuxK: a CUDA device is asked for the dead concepts at every sixteenth step only.
    """
    wide, params = X.astype(np.float64), {"auxk_coefficient": 0.0}
    gpu, cpu = make(cls, **params).fit(wide), make(cls, device="cpu", **params).fit(wide)
    assert gpu.module_.decoder_bias.device.type == "cuda"
    assert "on cuda" in gpu.backend_
    np.testing.assert_allclose(gpu.components_, cpu.components_, atol=1e-6)
    codes = gpu.transform(wide).toarray()
    np.testing.assert_allclose(codes, cpu.transform(wide).toarray(), atol=1e-5)
    assert gpu.score(wide) == pytest.approx(cpu.score(wide), abs=1e-7)
    assert gpu.l0_ == pytest.approx(cpu.l0_)
    assert gpu.dead_fraction_ == cpu.dead_fraction_


@pytest.mark.parametrize("cls", VARIANTS)
def test_tensors_on_the_device(cls, X):
    x = torch.from_numpy(X).cuda()
    sae = make(cls).fit(x)
    codes = sae.encode(x)
    assert codes.device.type == "cuda"
    np.testing.assert_allclose(codes.detach().cpu(), sae.transform(x).toarray(), atol=1e-4)
    assert sae.decode(codes).device.type == "cuda"
    assert sae.encode(x.cpu()).device.type == "cpu"
    assert isinstance(sae.score(x), float)


def test_rows_on_the_device_are_read_where_they_are(X):
    x = torch.from_numpy(X).cuda()
    assert RowBatches(x, torch.device("cuda"), torch.float32).rows.data_ptr() == x.data_ptr()
    expected = make(TopKSAE).fit(X)
    for rows in (x, x.T.contiguous().T, x[None][0].requires_grad_()):
        sae = make(TopKSAE).fit(rows)
        np.testing.assert_allclose(sae.components_, expected.components_, atol=1e-4)
    on_cpu, of_array = (make(TopKSAE, device="cpu").fit(rows) for rows in (x, X))
    np.testing.assert_array_equal(on_cpu.components_, of_array.components_)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        expected.transform(x.clone().fill_(torch.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_some_of_the_rows_on_the_device_are_held_out(X, dtype):
    x = torch.from_numpy(X).cuda().to(dtype)
    array = x.to(torch.promote_types(dtype, torch.float32)).cpu().numpy()
    plain = make(TopKSAE, validation_fraction=0.2).fit(array)
    one, two = (make(TopKSAE, validation_fraction=0.2) for _ in range(2))
    for sae in fit_many([one, two], x):
        np.testing.assert_allclose(sae.components_, plain.components_, atol=1e-4)
        assert sae.score(x) == pytest.approx(plain.score(array), abs=1e-4)


def test_targets_that_are_elsewhere(X):
    x = torch.from_numpy(X).cuda()
    expected = make(Transcoder).fit(X, X)
    for y in (X, x, sparse.csr_matrix(X)):
        transcoder = make(Transcoder).fit(x, y)
        np.testing.assert_allclose(transcoder.components_, expected.components_, atol=1e-4)
        assert transcoder.score(x, y) == pytest.approx(expected.score(X, X), abs=1e-4)


@pytest.mark.parametrize("cls", VARIANTS)
def test_the_generators_of_the_device_are_left_alone(cls, X):
    before = torch.cuda.get_rng_state()
    one, two = make(cls).fit(X), make(cls).fit(X)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-4)


@pytest.mark.parametrize("use_amp", ["bf16", "fp16"])
@pytest.mark.parametrize("cls", VARIANTS)
def test_half_precision(cls, use_amp, X):
    half, full = make(cls, use_amp=use_amp).fit(X), make(cls).fit(X)
    assert half.score(X) == pytest.approx(full.score(X), abs=0.03)


@pytest.mark.parametrize("cls", VARIANTS)
def test_data_larger_than_its_share_of_the_device(cls, X, monkeypatch):
    resident = make(cls).fit(X)
    monkeypatch.setattr("sksae.training._data._fits_device", lambda rows, device: False)
    np.testing.assert_allclose(make(cls).fit(X).components_, resident.components_, atol=1e-4)


@pytest.mark.parametrize("cls", VARIANTS)
def test_pickle_on_the_device(cls, X):
    sae = make(cls).fit(X)
    twin = pickle.loads(pickle.dumps(sae))
    np.testing.assert_array_equal(twin.transform(X).toarray(), sae.transform(X).toarray())
    twin.partial_fit(X)


@pytest.mark.parametrize("cls", VARIANTS)
def test_a_continued_fit_follows_the_device(cls, X):
    sae = make(cls, warm_start=True).fit(X)
    for device in ("cpu", "cuda"):
        sae.set_params(device=device).fit(X)
        assert sae.module_.decoder_bias.device.type == device
        states = sae.net_.optimizer_.state.values()
        assert all(state["exp_avg"].device.type == device for state in states)


def test_a_loss_that_is_not_finite_names_its_step(X):
    def nan_later(x, x_hat, pre_codes, codes, dictionary):
        nan_later.calls += 1
        return (x - x_hat).square().mean() * (float("nan") if nan_later.calls == 3 else 1.0)

    nan_later.calls = 0
    with pytest.raises(FloatingPointError, match="not finite at training step 2"):
        make(TopKSAE, criterion=nan_later).fit(X)


def test_a_device_number_that_is_not_there(X):
    with pytest.raises(ValueError, match="device='cuda:99' was asked of TopKSAE, but this machine"):
        make(TopKSAE, device="cuda:99").fit(X)


def test_extractor_by_name_and_on_the_device(tiny_bert_path):
    texts = ["the red house", "a dog", "no bird sees the old tree"] * 5
    gpu, cpu = (Extractor(tiny_bert_path, "layer.1", device=d) for d in ("auto", "cpu"))
    X, expected = gpu.fit_transform(texts), cpu.fit_transform(texts)
    np.testing.assert_allclose(X, expected, atol=1e-4)
    assert X.rows == expected.rows
    half = Extractor(tiny_bert_path, "layer.1", dtype="bfloat16").fit_transform(texts)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, expected, atol=0.1)


def test_losses_are_those_of_the_cpu(tiny_llama, byte_tokenizer):
    texts = ["the sea is blue", "a hidden state is a vector", "no"]
    given = {"layer": 1, "tokenizer": byte_tokenizer}
    acts = Extractor(tiny_llama, **given).fit_transform(texts)
    sae = make(TopKSAE, device="cpu").fit(np.asarray(acts))
    on_cpu = spliced_loss(sae, texts, model=tiny_llama, **given).to_dict()
    model = deepcopy(tiny_llama).cuda()
    on_cuda = spliced_loss(sae, texts, model=model, **given).to_dict()
    assert on_cuda == pytest.approx(on_cpu, rel=1e-2)
    sae.module_.cuda()
    assert spliced_loss(sae, texts, model=model, **given).to_dict() == pytest.approx(
        on_cuda, rel=1e-2
    )


# -- stored codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ON_STORED_CODES)
def test_fifty_steps_on_stored_codes_are_those_of_plain_torch(cls, X):
    """In float64, so that rounding does not decide which code is active."""
    wide, params = X.astype(np.float64), {"nb_epochs": 7, "device": "cuda"}
    slow, fast = (make(cls, backend=b, **params).fit(wide) for b in ("reference", "cuda"))
    assert slow.n_steps_ == fast.n_steps_ == 56
    assert fast.backend_ == "cuda (stored codes only, Triton)"
    assert slow.backend_ == "reference (plain torch on cuda:0: as asked for)"
    np.testing.assert_allclose(fast.components_, slow.components_, atol=1e-7)
    np.testing.assert_allclose(
        fast.history_[:, "train_loss"], slow.history_[:, "train_loss"], rtol=1e-7
    )
    codes = [sae.transform(wide) for sae in (slow, fast)]
    np.testing.assert_allclose(*(z.toarray() for z in codes), atol=1e-6)
    assert codes[1].nnz == np.count_nonzero(codes[1].data)


@pytest.mark.parametrize("use_amp", [False, "bf16", "fp16"])
@pytest.mark.parametrize("cls", ON_STORED_CODES)
def test_stored_codes_in_single_and_half_precision(cls, use_amp, X):
    params = {"device": "cuda", "use_amp": use_amp}
    slow, fast = (make(cls, backend=b, **params).fit(X) for b in ("reference", "cuda"))
    assert fast.score(X) == pytest.approx(slow.score(X), abs=0.03)
    assert ("use_amp in float16" in fast.backend_) == (use_amp == "fp16")
    assert ("product in bfloat16" in fast.backend_) == (use_amp == "bf16")


def test_default_sizes_are_on_stored_codes():
    X = np.random.default_rng(0).normal(size=(3000, 24)).astype(np.float32)
    for cls in (TopKSAE, BatchTopKSAE):
        backend = cls(nb_epochs=2).fit(X).backend_
        assert backend.startswith("cuda") and "plain torch" not in backend


def test_a_momentum_that_changes_at_each_step(X):
    """As one learning-rate scheduler has it."""
    params = {"scheduler_class": torch.optim.lr_scheduler.OneCycleLR, "nb_epochs": 20}
    params["scheduler_params"] = {"max_lr": 0.01, "total_steps": 161}
    wide = X.astype(np.float64)
    fits = [make(TopKSAE, backend=b, **params).fit(wide) for b in ("cuda", "reference")]
    np.testing.assert_allclose(*(sae.components_ for sae in fits), atol=1e-6)


def test_kernels_are_chosen_by_size(X):
    backends = [
        TopKSAE(m, top_k=k, nb_epochs=1, random_state=0).fit(X).backend_
        for m, k in ((256, 8), (256, 9), (255, 4))
    ]
    assert [b.split()[0] for b in backends] == ["cuda", "reference", "reference"]


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, JumpReLUSAE, VanillaSAE])
def test_pre_codes_found_in_bfloat16(cls):
    """The same as those of the product in float32, in training (TopK) and after it."""
    X = np.random.default_rng(0).normal(size=(4096, 96)).astype(np.float32)
    params = {"top_k": 16} if "top_k" in cls().get_params() else {"target_l0": 16}
    sae = cls(8192, batch_size=1024, nb_epochs=12, random_state=0, **params)
    fast, slow = sae.fit(X), clone(sae).set_params(backend="reference").fit(X)
    assert "large pre-codes found in bfloat16" in fast.backend_ or cls is not TopKSAE
    stored = cls in (TopKSAE, BatchTopKSAE)
    assert fast.backend_.startswith("cuda (stored codes only" if stored else "reference (plain")
    unsure = re.search(r"without certainty for up to (\d+) rows", fast.backend_)
    assert unsure is None or int(unsure[1]) < 50  # of 49,152
    assert fast.score(X) == pytest.approx(slow.score(X), abs=0.02)
    ours = fast.transform(X)
    theirs = fast.set_params(backend="reference").transform(X)
    assert ours.nnz == pytest.approx(theirs.nnz, rel=1e-4)  # of what rounding decides
    assert abs(ours - theirs).max() < 1e-2 and abs(ours - theirs).mean() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n, m, k", [(7, 100, 100), (1, 5, 1), (300, 24576, 32), (9, 40000, 33)])
def test_top_k(n, m, k, dtype):
    pre = torch.randn(n, m, device="cuda").to(dtype)
    codes, values = _cuda.top_k(pre, k)
    assert torch.equal(values.reshape(n, k).sort().values, pre.relu().topk(k).values.flip(1))
    kept = codes.dense(values)
    assert torch.equal(kept, pre * (kept > 0))


@pytest.mark.parametrize("block", [4, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("d", [3, 384, 768, 1100])
def test_a_step_by_rows(d, dtype, block, monkeypatch):
    """Beside autograd and torch's Adam in float64; in bfloat16 with rounded tables."""
    monkeypatch.setattr(_triton, "_BLOCK", block)
    n, m, k, half = 300, 200, 20, dtype == torch.bfloat16
    number = torch.float32 if half else dtype
    u = torch.randn(n, d, device="cuda", dtype=number)
    modules = [TopKModule(d, m, top_k=k).cuda().to(t).train() for t in (number, torch.float64)]
    modules[1].load_state_dict(modules[0].state_dict())
    optimizers = [torch.optim.Adam(x.parameters(), lr=1e-3, eps=1e-3, fused=True) for x in modules]
    assert steps_by_rows(optimizers[0])
    workspace = Workspace(torch.empty(n, m, device="cuda", dtype=dtype))
    for _ in range(4):
        modules[0].row_gradients = gradients = RowGradients()
        *_, (u_hat,), error = modules[0].forward_sparse(u, workspace, lambda *sizes: None)
        optimizers[0].zero_grad()
        error.backward()
        gradients.step(modules[0].row_parameters(), optimizers[0])
        optimizers[0].step()
        modules[0].after_step()
        _, _, plain, _ = modules[1].forward_scaled(u.double())
        optimizers[1].zero_grad()
        (plain - u).square().mean().backward()
        optimizers[1].step()
        modules[1].after_step()
    # Rounding to bfloat16 decides about some codes.
    # Rows have unit norm to 1e-8, which one takes for exact and the other does not; Adam makes
    # more of it where gradients are small.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float64: 1e-6}[dtype]
    for ours, theirs in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        off = (ours - theirs).abs()
        assert half or off.max() < tolerance
        assert off.mean() < tolerance / 10
    assert (u_hat - plain).abs().mean() < 10 * tolerance * plain.std()


@pytest.mark.parametrize("use_amp", [False, True])
@pytest.mark.parametrize("n_dead, k", [(5, 9), (300, 64), (2048, 384), (40000, 100)])
def test_the_loss_of_dead_concepts(n_dead, k, use_amp):
    """Beside the formula under autograd in float64."""
    shapes = [(700, 96), (n_dead, 96), (n_dead,), (n_dead, 128), (500, 128), (500, 128)]
    on = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(0)}
    c, weight, bias, dictionary, target, x_hat = (torch.randn(s, **on) for s in shapes)
    if k < n_dead:  # rows of which rounding does not decide which are the k largest
        last = torch.addmm(bias, c, weight.T).topk(k + 1).values[:, -2:]
        c = c[(last[:, 0] - last[:, 1]).topk(500).indices]
    c = c[:500]
    parameters = [t.requires_grad_() for t in (weight, bias, dictionary)]
    assert has_dead_loss(c.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=use_amp):
        loss = dead_loss(c, (weight, bias), dictionary, target, x_hat, k, LEAK)
    pre = torch.nn.functional.linear(c.double(), weight.double(), bias.double())
    expected = auxk_loss((target - x_hat).double(), pre, dictionary.double(), k)
    tolerance = 0.1 if use_amp else 1e-3
    assert torch.allclose(loss.double(), expected, rtol=tolerance)
    ours, theirs = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2 * tolerance * other.norm()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("d", [3, 128, 768, 1100])
def test_rows_at_a_time(d, dtype, tolerance):
    n, m, k = 200, 500, 33
    pre, target, table = (
        torch.randn(*s, device="cuda", dtype=dtype) for s in ((n, m), (n, d), (m, d))
    )
    bias, limit = target[0].clone(), target.new_tensor(d**0.5)
    codes, values = _cuda.top_k(pre, k)
    given = codes, values, table, bias, target
    for ours, plain in zip(_cuda.reconstruct(*given), _gathers.reconstruct(*given), strict=True):
        assert torch.allclose(ours, plain, rtol=10 * tolerance, atol=d * tolerance)
    given = target, limit / 7, bias, limit
    ours, plain = (x.scale_rows(*given) for x in (_cuda, _gathers))
    assert torch.allclose(ours, plain, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("d", [3, 128, 768, 1100])
def test_sums_and_products(d, dtype, tolerance):
    n, m, k = 200, 500, 33
    pre, g, table = (torch.randn(*s, device="cuda", dtype=dtype) for s in ((n, m), (n, d), (m, d)))
    codes, values = _cuda.top_k(pre, k)
    for operation, *arguments in (
        ("sum_rows", codes.indptr, codes.columns, values, table),
        ("products", codes, g, table),
    ):
        ours, plain = (getattr(x, operation)(*arguments) for x in (_cuda, _gathers))
        assert torch.allclose(ours, plain, atol=tolerance)
    ours, plain = table.clone(), table.clone()
    atoms = torch.nn.functional.normalize(torch.randn_like(table), dim=1)
    _cuda.remove_parallel_(ours, atoms)
    _gathers.remove_parallel_(plain, atoms)
    assert torch.allclose(ours, plain, atol=tolerance)


@pytest.fixture
def n_repeated(monkeypatch):
    """How often a recorded step was repeated, in a list."""
    n, replay = [0], torch.cuda.CUDAGraph.replay

    def count(graph):
        n[0] += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", count)
    return n


@pytest.mark.parametrize("params", [{}, {"auxk_coefficient": 0.0}, {"dead_after": 300}])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, MatryoshkaSAE])
def test_repeated_steps_are_those_taken_one_by_one(cls, dtype, params, X, n_repeated, monkeypatch):
    """With other rows, learning rates, dead concepts and a smaller last batch in each epoch."""
    wide, params = X.astype(dtype), {"backend": "cuda", "nb_epochs": 20} | params
    repeated = make(cls, **params).fit(wide)
    assert n_repeated[0] > 20
    monkeypatch.setattr("sksae.training._recorded._STEADY", 10**9)
    n_repeated[0] = 0
    plain = make(cls, **params).fit(wide)
    assert n_repeated[0] == 0
    assert repeated.n_steps_ == plain.n_steps_ == 160
    assert repeated.backend_ == plain.backend_
    # Sums over the rows are made in no fixed order, and what fires is decided by rounding.
    tolerance = {"atol": 1e-7} if dtype == np.float64 else {"atol": 0.02}
    for key in ("train_loss", "l0", "explained_variance", "dead_fraction"):
        np.testing.assert_allclose(repeated.history_[:, key], plain.history_[:, key], **tolerance)
    if dtype == np.float64:
        np.testing.assert_allclose(repeated.components_, plain.components_, atol=1e-6)


ON_DENSE_CODES = [TopKSAE, BatchTopKSAE, MatryoshkaSAE, JumpReLUSAE, VanillaSAE, GatedSAE]


def dense(cls, **params):
    """Too few concepts for stored codes; a target for L0, and a penalty that grows."""
    target = {} if "top_k" in cls().get_params() else {"target_l0": 4}
    return make(cls, nb_epochs=20, **target, **params)


@pytest.mark.parametrize("params", [{}, {"auxk_coefficient": 0.0}, {"dead_after": 300}])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls", ON_DENSE_CODES)
def test_repeated_steps_with_dense_codes(cls, dtype, params, X, n_repeated, monkeypatch):
    wide = X.astype(dtype)
    repeated = dense(cls, **params).fit(wide)
    assert n_repeated[0] > 20 and "too few for stored codes" in repeated.backend_
    n_repeated[0] = 0
    plain = dense(cls, backend="reference", **params).fit(wide)
    assert n_repeated[0] == 0
    tolerance = {"atol": 1e-7} if dtype == np.float64 else {"atol": 0.02}
    for key in ("train_loss", "l0", "explained_variance", "dead_fraction"):
        np.testing.assert_allclose(repeated.history_[:, key], plain.history_[:, key], **tolerance)
    if dtype == np.float64:
        np.testing.assert_allclose(repeated.components_, plain.components_, atol=1e-6)


@pytest.mark.parametrize("use_amp", [False, "bf16"])
@pytest.mark.parametrize("cls", [JumpReLUSAE, VanillaSAE, GatedSAE])
def test_repeated_steps_that_are_compiled(cls, use_amp, X, n_repeated, monkeypatch):
    monkeypatch.setattr("sksae.training._recorded._FEWEST_COMPILED", 0)
    compiled = dense(cls, use_amp=use_amp).fit(X)
    assert n_repeated[0] > 20 and ", compiled: " in compiled.backend_
    plain = dense(cls, use_amp=use_amp, backend="reference").fit(X)
    assert compiled.score(X) == pytest.approx(plain.score(X), abs=0.02)
    assert compiled.l0_ == pytest.approx(plain.l0_, rel=0.05)


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, MatryoshkaSAE])
def test_repeated_steps_in_bfloat16(cls, X, n_repeated, monkeypatch):
    params = {"backend": "cuda", "use_amp": "bf16", "nb_epochs": 20, "dead_after": 300}
    repeated = make(cls, **params).fit(X)
    assert n_repeated[0] > 20
    monkeypatch.setattr("sksae.training._recorded._STEADY", 10**9)
    assert repeated.score(X) == pytest.approx(make(cls, **params).fit(X).score(X), abs=0.02)


def test_weights_that_a_callback_changes_are_seen_by_repeated_steps(X, n_repeated, monkeypatch):
    class Grow(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.module_.linear_encoder.weight.data *= 1.5

    params = {"backend": "cuda", "use_amp": "bf16", "nb_epochs": 6, "callbacks": [Grow()]}
    repeated = make(TopKSAE, **params).fit(X)
    assert n_repeated[0] > 10
    monkeypatch.setattr("sksae.training._recorded._STEADY", 10**9)
    plain = make(TopKSAE, **params).fit(X)
    losses = [sae.history_[:, "train_loss"] for sae in (repeated, plain)]
    np.testing.assert_allclose(*losses, rtol=0.05)


@pytest.mark.parametrize("steady", [2, 10**9])
@pytest.mark.parametrize("use_amp", [False, "bf16"])
@pytest.mark.parametrize("cls", ON_DENSE_CODES)
def test_steps_do_not_wait_for_the_device(cls, use_amp, steady, X, monkeypatch):
    """But every sixteenth, which lists the dead concepts."""
    monkeypatch.setattr("sksae.training._recorded._STEADY", steady)
    checked = {"train_step": 0, "take": 0, "add": 0}

    def check(owner, name, applies):
        function = getattr(owner, name)

        def call(self, *args, **kwargs):
            if not applies(self, *args):
                return function(self, *args, **kwargs)
            checked[name] += 1
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(self, *args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(owner, name, call)

    check(SAENet, "train_step", lambda net, batch: net.n_steps_ % 16 != 0)
    check(RowBatches, "take", lambda rows, index: isinstance(index, torch.Tensor) and index.is_cuda)
    check(EpochTotals, "add", lambda totals, step: True)
    stored = cls in (TopKSAE, BatchTopKSAE, MatryoshkaSAE)
    backend = "cuda" if stored else "auto"
    sae = make(cls, backend=backend, device="cuda", use_amp=use_amp, dead_after=500).fit(X)
    assert checked == {"train_step": 37, "take": 40, "add": 40}
    assert sae.n_steps_ == 40


def test_a_fit_is_unpickled_where_there_is_no_device(X, tmp_path):
    sae = make(TopKSAE, backend="cuda", device="cuda").fit(X)
    (tmp_path / "sae.pkl").write_bytes(pickle.dumps(sae))
    np.save(tmp_path / "X.npy", X)
    code = (
        "import pickle, numpy as np; sae = pickle.load(open('sae.pkl', 'rb')); "
        "np.save('Z.npy', sae.transform(np.load('X.npy')).toarray())"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "Z.npy"), sae.transform(X).toarray(), atol=1e-3)


def test_kernels_for_the_cpu_are_refused(X):
    with pytest.raises(ValueError, match="backend='cpu' of TopKSAE computes on device='cpu' only"):
        make(TopKSAE, backend="cpu").fit(X)
