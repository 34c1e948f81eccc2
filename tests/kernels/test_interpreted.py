"""The Triton kernels of a training step against plain torch, in Triton's interpreter.

It cuts numbers off where a device rounds them to bfloat16.

`test_triton.py` runs them, in a process whose environment says so.
"""

import os

import pytest
import torch
from torch.nn.functional import normalize

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("for Triton's interpreter", allow_module_level=True)

from sksae.kernels import (
    RowGradients,
    SparseCodes,
    Workspace,
    _cuda,
    _gathers,
    _ops,
    _row_gradients,
    _triton,
    above,
    encode,
    largest,
    reconstruct,
    top_k,
)
from sksae.kernels._half import HalfScreened

N, M, D = 6, 17, 5


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch):
    """Compute on the CPU as on CUDA devices."""
    monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
    monkeypatch.setattr(_row_gradients, "_steps_on_cpu", _row_gradients._steps_on_cuda)


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- selection in groups of columns ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m, k", [(4096, 1), (5000, 32), (9001, 100), (2**15 + 1, 3)])
def test_top_k_of_wide_rows(m, k, dtype):
    assert _triton._group_sizes(m, k) is not None
    pre = (numbers(2, m) * torch.tensor([[1.0], [1e-3]])).to(dtype)
    codes, values = top_k(pre, k)
    values = values.view(2, k)
    assert torch.equal(values.sort(descending=True).values, pre.topk(k).values)
    assert torch.equal(pre.gather(1, codes.columns.view(2, k).long()), values)
    assert (codes.columns.view(2, k).diff(dim=1) > 0).all()


def test_top_k_of_wide_rows_with_ties_and_few_positive_entries():
    pre = -numbers(4, 5000).abs()
    pre[0, [3, 4099]] = 2.0
    pre[1] = 1.0
    pre[2, 7::1024] = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    pre[3, 17] = torch.nan
    codes, values = top_k(pre, 4)
    columns, values = codes.columns.view(4, 4), values.view(4, 4)
    assert all(len(row.unique()) == 4 for row in columns)
    assert sorted(values[0].tolist()) == [0, 0, 2, 2]
    assert values[1].tolist() == [1] * 4
    assert sorted(values[2].tolist()) == [1, 3, 4, 5]
    assert values[3].isnan().sum() == 1 and columns[3][values[3].isnan()] == 17
    assert codes.kept.view(4, 4).sum(1).tolist() == [2, 4, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_kept", [1, 60, 1500])
def test_the_largest_of_wide_rows_together(n_kept, dtype, monkeypatch):
    monkeypatch.setattr(_cuda, "_LARGEST_SHARE", 1)
    pre = numbers(3, 5000).to(dtype)
    pre[1] *= 3
    assert _triton.group_tops(pre).shape == (3, 512)
    codes, values, cut = largest(pre, n_kept, torch.tensor(torch.nan))
    monkeypatch.setattr(_cuda, "compiled", lambda: None)
    expected, as_before, same = largest(pre, n_kept, torch.tensor(torch.nan))
    assert torch.equal(codes.dense(values), expected.dense(as_before))
    assert torch.equal(cut, same) and len(values) == len(as_before) == n_kept + 3


def test_the_largest_of_wide_rows_with_one_that_is_all_of_them(monkeypatch):
    monkeypatch.setattr(_cuda, "_LARGEST_SHARE", 1)
    pre = -numbers(2, 5000).abs()
    pre[1, ::7] = 1.0
    codes, values, cut = largest(pre, 700, torch.tensor(torch.nan))
    assert cut == 1 and values.sum() == 702  # one more for each row
    pre[1, 3000:] = -1
    pre[0, 4000] = torch.nan
    codes, values, cut = largest(pre, 700, torch.tensor(torch.nan))
    assert cut.isnan() and values.isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("each", [True, False])
def test_what_of_wide_rows_exceeds_a_cut(each, dtype):
    pre, cut = numbers(3, 5000).to(dtype), numbers(5000, seed=1).abs()
    pre[1], pre[2, 4999] = -1, 9
    cut = cut if each else torch.tensor(1.7)
    codes, values = above(pre, cut)
    expected, plain = _gathers.above(pre, cut)
    for name in ("indptr", "columns"):
        assert torch.equal(getattr(codes, name), getattr(expected, name))
        assert getattr(codes, name).dtype == torch.int32
    assert torch.equal(values, plain) and values.dtype == dtype
    for most, there in ((len(plain), True), (len(plain) - 1, False)):
        found = _cuda.fewer_above(pre, cut if each else cut.to(dtype), most)
        assert (found is not None) == there


@pytest.mark.parametrize(
    "m, k, expected",
    [
        (1024, 32, None),
        (4096, 32, (512, 8)),
        (24576, 32, (2048, 12)),
        (24576, 600, None),
        (2**16, 32, (2048, 32)),
        (2**17 + 1, 32, None),
    ],
)
def test_groups_of_columns(m, k, expected):
    assert _triton._group_sizes(m, k) == expected
    assert _triton.has_top_k(m, k) == (expected is not None or m <= 2**15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("by", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize("k", [1, 40, 99, 100, 200])
def test_the_largest_of_any_sign_by_a_leaky_relu(k, by, dtype, monkeypatch):
    pre = (numbers(3, 100) + by).to(dtype)
    pre[1, 50:] = -torch.inf
    ours = _triton.keep_dead(pre, k, 0.25)
    monkeypatch.setattr(_cuda, "compiled", lambda: None)
    for one, other in zip(ours, _cuda.keep_dead(pre, k, 0.25), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one.float().sort().values, other.float().sort().values)
    codes, slopes = (x.float() for x in ours)
    assert (slopes != 0).sum(1).tolist() == [min(k, 100), min(k, 50), min(k, 100)]
    expected = torch.where(slopes != 0, pre.float(), 0) * slopes
    assert torch.allclose(codes, expected, rtol=2**-7)


def test_ties_and_numbers_that_are_none():
    pre = torch.zeros(3, 9)
    pre[1] = -1.0
    pre[2, 3] = torch.nan
    codes, slopes = _triton.keep_dead(pre, 4, 0.1)
    assert (slopes != 0).sum(1).tolist() == [4, 4, 4]
    assert codes[1].tolist() == pytest.approx([-0.1] * 4 + [0] * 5)
    assert codes[2].isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("k, n_tried, d", [(1, 32, 70), (20, 40, 16), (30, 500, 130), (32, 32, 3)])
def test_some_pre_codes_of_each_row_are_computed_anew(k, n_tried, d):
    n, m = 4, 4096
    rows, weight, bias = numbers(n, d), numbers(m, d, seed=1), numbers(m, seed=2)
    rows[1] = 0
    bias[::2] -= 10 * d**0.5  # so that few are positive
    pre = rows @ weight.T + bias
    columns, rounded = _cuda.largest_of_rows(pre.bfloat16(), n_tried)
    level = torch.tensor(0.3), torch.tensor(0.7)
    if k == 30:
        bias -= pre.max() - 0.1  # fewer than k are positive
        pre = rows @ weight.T + bias
        columns, rounded = _cuda.largest_of_rows(pre.bfloat16(), n_tried)
    given = (columns, rounded), (rows, weight, bias), level, 0.01, k
    ours, theirs = _triton.choose_exactly(*given), _gathers.choose_exactly(*given)
    found, expected = torch.zeros(2, n, m).unbind()
    for dense, chosen in ((found, ours), (expected, theirs)):
        dense.scatter_(1, chosen[0].long(), chosen[1])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (ours[0].diff(dim=1) > 0).all() and ours[0].dtype == torch.int32
    least = pre.gather(1, columns.long()).topk(k).values[:, -1].relu()
    highest = rounded.amin(dim=1).float() * 1.01 + 0.3 + 0.7 * rows.norm(dim=1)
    for surplus in (ours[2], theirs[2]):
        assert torch.allclose(surplus, least - highest, rtol=1e-4, atol=1e-4)


def test_a_pre_code_that_is_no_number_is_among_the_largest():
    rows, weight, bias = numbers(3, 8), numbers(64, 8, seed=1), torch.zeros(64)
    rows[1, 2] = torch.nan
    tried = torch.arange(32, dtype=torch.int32).repeat(3, 1), torch.ones(3, 32)
    level = torch.zeros(()), torch.zeros(())
    _, values, surplus = _triton.choose_exactly(tried, (rows, weight, bias), level, 0.0, 5)
    assert values.isnan().all(dim=1).tolist() == [False, True, False]
    assert ~(surplus[1] >= 0)


@pytest.mark.parametrize("k, widest", [(1, 2**15), (20, 2**15), (70, 2**15), (70, 128)])
def test_selection_by_a_product_in_bfloat16(k, widest, monkeypatch):
    """With the kernel, and where more are tried than it takes."""
    monkeypatch.setattr(_triton, "WIDEST", widest)
    n, m, d = 64, 4096, 64
    memory = torch.empty(n, m)
    given = numbers(n, d), normalize(numbers(m, d, seed=1)), 0.1 * numbers(m, seed=2)
    codes, values = HalfScreened(Workspace(memory, constant=True), *given).top_k(k)
    theirs, expected = top_k(torch.addmm(given[2], given[0], given[1].T), k)
    ours, expected = codes.dense(values), theirs.dense(expected)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(codes.indptr, theirs.indptr)


# -- a row at a time ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [0.7, torch.inf])
def test_scale_rows(dtype, limit):
    x, center = numbers(N, 300, dtype=dtype), numbers(300, dtype=dtype, seed=1)
    x[0] = 2.5 * center
    given = x, torch.tensor(2.5, dtype=dtype), center, torch.tensor(20 * limit, dtype=dtype)
    ours, plain = _triton.scale_rows(*given), _gathers.scale_rows(*given)
    assert torch.allclose(ours, plain, atol=1e-6)
    assert torch.allclose(_triton.scale_rows(x.T.contiguous().T, *given[1:]), plain, atol=1e-6)


def test_reconstruction_by_a_rounded_dictionary():
    """Sums are in full precision, and so is what the error is multiplied by."""
    codes, values = top_k(numbers(N, M), 3)
    dictionary, bias, target = (
        numbers(M, 300, seed=1),
        numbers(300, seed=2),
        numbers(N, 300, seed=3),
    )
    rounded = dictionary.bfloat16()
    x_hat, error, slopes, squares = _triton.reconstruct(codes, values, rounded, bias, target)
    plain = codes.dense(values) @ rounded.float() + bias
    assert torch.allclose(x_hat, plain, atol=1e-5)
    assert error.dtype == torch.bfloat16
    assert torch.allclose(error.float(), x_hat - target, rtol=2**-7)
    assert torch.allclose(squares, (plain - target).square().sum())
    at = codes.rows.long(), codes.columns.long()
    assert torch.allclose(slopes, ((plain - target) @ rounded.float().T)[at], atol=1e-4)


# -- steps ----------------------------------------------------------------------------------------


def layout(seed):
    """Give codes of which some concepts have none, and one has one in each row."""
    mask = torch.rand(N, M, generator=torch.manual_seed(seed)) < 0.2
    mask[:, 3], mask[:, 5] = True, False
    indptr = torch.zeros(N + 1, dtype=torch.int32)
    indptr[1:] = mask.sum(1).cumsum(0)
    return SparseCodes(indptr, mask.nonzero()[:, 1].int(), M)


def test_rates_and_momenta_at_their_ends():
    """No first moment, and a rate that float32 cannot hold."""
    rows = [torch.nn.Parameter(torch.ones(M, D, dtype=torch.float64)) for _ in range(2)]
    optimizers = [torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.9), fused=True) for p in rows]
    codes, batch = layout(0), numbers(N, D, dtype=torch.float64)
    weights = numbers(len(codes.columns), dtype=torch.float64)
    gradients = RowGradients()
    gradients.add("encoder", codes, weights, batch, False)
    gradients.step({"encoder": rows[0]}, optimizers[0])
    rows[1].grad = codes.dense(weights).T @ batch
    optimizers[1].step()
    assert torch.allclose(*rows, atol=1e-14, rtol=0)


def test_entries_that_are_no_codes_have_no_part_in_a_step():
    """With blocks of one entry, whose concept the step has to tell from none."""
    pre = numbers(N, M)
    pre[:3] = -1.0
    codes, values = top_k(pre, 4)
    assert not codes.kept.all() and codes.by_concept[0][-1] == codes.kept.sum()
    assert torch.equal(codes.fired(values), (codes.dense(values) > 0).any(0))
    assert codes.n_active(values) == (values > 0).sum()
    gradients, rows = RowGradients(), torch.nn.Parameter(torch.zeros(M, D))
    gradients.add("encoder", codes, torch.ones_like(values), torch.ones(N, D), False)
    optimizer = torch.optim.Adam([rows], lr=1.0, betas=(0.0, 0.999), fused=True)
    gradients.step({"encoder": rows}, optimizer)
    n_codes = (codes.dense(values) > 0).sum(0)
    assert torch.allclose(optimizer.state[rows]["exp_avg"], n_codes[:, None].expand(M, D).float())


def test_a_step_keeps_the_roundings_of_what_it_changes():
    parameter, bias = torch.nn.Parameter(normalize(numbers(M, D))), torch.zeros(M)
    optimizer = torch.optim.Adam([parameter], lr=0.01, fused=True)
    workspace, u = Workspace(torch.empty(N, M, dtype=torch.bfloat16)), numbers(N, D, seed=1)
    for _ in range(2):
        gradients, center = RowGradients(), torch.zeros(D)
        given = u, center, parameter, bias, lambda pre: top_k(pre, 3), workspace, gradients
        values, _ = encode(*given)
        values.sum().backward()
        assert gradients.sums["encoder"].table.dtype == torch.bfloat16
        gradients.step({"encoder": parameter}, optimizer)
        copy = workspace.copy_of(parameter)
        assert copy.dtype == torch.bfloat16
        assert torch.allclose(copy.float(), parameter, rtol=2**-7)
        assert workspace._versions  # so that the next product need not round them
    with torch.no_grad():
        parameter += 1
    assert torch.equal(workspace.rounded(parameter), parameter.bfloat16())
    parameter.data += 1  # of which torch does not know
    assert torch.equal(workspace.rounded(parameter), parameter.bfloat16())


def test_a_step_of_an_autoencoder_in_bfloat16_is_one_with_rounded_tables():
    """Where only exact numbers are rounded, but the center's gradient, it is the step in full."""
    results = []
    for precision in (torch.float32, torch.bfloat16):
        digits = torch.arange(M * 4).view(M, 4) * 7919 % 17
        encoder = torch.nn.Parameter(digits / 16)
        dictionary = torch.nn.Parameter(digits % 2 - 0.5)  # of unit norm
        u, biases = torch.eye(4), (torch.zeros(4), torch.zeros(M), torch.zeros(4))
        biases = [b.requires_grad_() for b in biases]
        optimizer = torch.optim.Adam([encoder, dictionary], lr=0.01, eps=1e-3, fused=True)
        workspace, gradients = Workspace(torch.empty(4, M, dtype=precision)), RowGradients()
        center, bias, offset = biases
        given = u, center, encoder, bias, lambda pre: top_k(pre, 3), workspace, gradients
        values, codes = encode(*given)
        x_hat, error = reconstruct(codes, values, dictionary, offset, u, gradients)
        error.backward()
        gradients.step({"encoder": encoder, "dictionary": dictionary}, optimizer)
        optimizer.step()
        assert encoder.grad is dictionary.grad is None
        assert values.dtype == x_hat.dtype == torch.float32
        results.append([values, x_hat, error, encoder, dictionary, bias.grad, offset.grad])
        results[-1].append(center.grad)
    for full, half in zip(*results, strict=True):
        rounded = full is results[0][-1]
        assert torch.allclose(full, half, atol=1e-6, rtol=2**-7 if rounded else 1e-5)


def test_rows_are_centered_in_the_precision_of_the_product():
    x, center = numbers(300, 7), numbers(7, seed=1)
    for dtype, exact in ((torch.float32, 1e-7), (torch.bfloat16, 2**-7)):
        for rows in (x, x.T.contiguous().T):
            c = _cuda.subtract(rows, center, dtype)
            assert c.dtype == dtype and c.is_contiguous()
            torch.testing.assert_close(c.float(), x - center, rtol=exact, atol=0)
    assert _cuda.subtract(x[:0], center, torch.bfloat16).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_with_gradients_are_those_of_torch(dtype):
    """With more entries than a program takes, and a gradient that is not contiguous."""
    start = numbers(30, 50, dtype=dtype)
    ours, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [torch.optim.Adam([p], lr=0.01, fused=True) for p in (ours, plain)]
    for step in range(3):
        ours.grad = numbers(50, 30, dtype=dtype, seed=step).T
        plain.grad = ours.grad.contiguous()
        RowGradients().step({}, optimizers[0])
        optimizers[1].step()
        assert ours.grad is None
    assert torch.allclose(ours, plain, atol=1e-6 if dtype == torch.float32 else 1e-14, rtol=0)
