"""The kernels against plain torch: selections, values, every gradient; odd shapes, ties, NaN."""

import os

import pytest
import torch
from torch.nn.functional import normalize

from sksae.kernels import (
    SparseCodes,
    Workspace,
    _cpu,
    _cuda,
    _ops,
    above,
    decode,
    encode,
    largest,
    reconstruct,
    top_k,
)

# Triton's interpreter takes milliseconds for a program, of which each row needs one.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
N, M, D = (5 if INTERPRETED else 37), 131, 19
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=["triton"] if INTERPRETED else ["numba", "torch", "cuda"], autouse=True)
def loops(request, monkeypatch):
    """What computes: for the CPU, or for CUDA in plain torch or Triton's interpreter."""
    if request.param == "numba":
        pytest.importorskip("numba")
    if request.param == "torch":
        monkeypatch.setattr(_cpu, "compiled", lambda: None)
    if request.param in ("cuda", "triton"):
        monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
    if request.param == "cuda":
        monkeypatch.setattr(_cuda, "compiled", lambda: None)
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def numbers(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_top_k(pre, k):
    values, columns = pre.relu().topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, columns, values)


# -- selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 16, 33, M - 1, M])
def test_top_k_gives_what_torch_gives(dtype, k):
    pre = numbers(N, M, dtype=dtype)
    codes, values = top_k(pre, k)
    assert torch.equal(codes.dense(values), dense_top_k(pre, k))
    assert codes.indptr.dtype == codes.columns.dtype == torch.int32


@pytest.mark.parametrize("m", [1, 2, 63, 64, 65, 128, 1000, 5000])
@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
def test_top_k_of_any_width_and_size(m, scale):
    pre = scale * numbers(5, m, dtype=torch.float32) * torch.tensor([[1], [100], [0.01], [1], [5]])
    k = min(7, m)
    codes, values = top_k(pre, k)
    assert torch.equal(codes.dense(values), dense_top_k(pre, k))


def test_top_k_stores_positive_entries_only():
    pre = -numbers(4, M).abs()
    pre[1, [3, 90]] = torch.tensor([1.0, 2.0], dtype=pre.dtype)
    pre[2] = 0
    codes, values = top_k(pre, 5)
    if codes.kept is not None:  # the layout is filled up
        assert codes.indptr.tolist() == [0, 5, 10, 15, 20] and not values[~codes.kept].any()
        codes, values = codes.keep(codes.kept, values)
    assert codes.indptr.tolist() == [0, 0, 2, 2, 2]
    assert sorted(values.tolist()) == [1.0, 2.0]


@pytest.mark.parametrize("k", [1, 8, 100])
def test_top_k_of_ties_keeps_k_of_them(k):
    pre = torch.ones(3, M)
    pre[0, 5:9] = 2.0
    codes, values = top_k(pre, k)
    assert codes.indptr.diff().tolist() == [k] * 3
    assert values[:k].sum() == k + min(k, 4)
    for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        assert len(codes.columns[a:b].unique()) == k


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_top_k_of_numbers_that_are_none_stays_in_its_bounds(bad, loops):
    pre = numbers(6, M, dtype=torch.float32)
    pre[::2, ::3] = bad
    pre[5] = bad
    codes, values = top_k(pre, 9)
    assert len(codes.columns) == len(values) == codes.indptr[-1] <= 6 * 9
    assert not len(values) or 0 <= codes.columns.min() <= codes.columns.max() < M
    if loops in ("cuda", "triton"):  # where nobody looks at each loss, NaN goes on into it
        assert bool(values.isnan().any()) == (bad is torch.nan)


def test_above_takes_one_cut_or_one_per_column(dtype):
    pre, cut = numbers(N, M, dtype=dtype), numbers(M, dtype=dtype, seed=1)
    for one_or_all in (cut, cut[3]):
        codes, values = above(pre, one_or_all)
        assert torch.equal(codes.dense(values), pre * (pre > one_or_all))
        assert torch.equal(codes.columns, (pre > one_or_all).nonzero()[:, 1].int())
    codes, values = above(pre, pre.new_tensor(torch.inf))
    assert len(values) == 0 and codes.indptr.tolist() == [0] * (N + 1)


@pytest.mark.parametrize("n_kept", [1, 37, 500, 2000, 2500, N * M])
@pytest.mark.parametrize("expected", [torch.nan, 0.0, 1.5, 100.0])
def test_largest_of_all_rows(dtype, n_kept, expected):
    pre = numbers(N, M, dtype=dtype)
    codes, values, cut = largest(pre, n_kept, torch.tensor(expected))
    nth = pre.relu().flatten().sort(descending=True).values[n_kept - 1]
    assert torch.equal(cut, nth)
    assert torch.equal(codes.dense(values), pre * ((pre >= nth) & (pre > 0)))
    assert codes.indptr.dtype == codes.columns.dtype == torch.int32
    assert codes.rows.tolist() == sorted(codes.rows.tolist())
    if codes.kept is not None:
        assert len(values) - codes.n_spare == n_kept


def test_largest_of_equal_rows_keeps_all_that_reach_the_cut(dtype):
    pre = numbers(1, M, dtype=dtype).expand(N, M).contiguous()
    codes, values, cut = largest(pre, 3 * N - 5, torch.tensor(torch.nan))
    assert torch.equal(codes.dense(values), pre * (pre >= pre[0].topk(3).values[-1]))


@pytest.mark.parametrize("ends", [(M,), (1, M), (3, 4, 60, M), tuple(range(1, M + 1))])
@pytest.mark.parametrize("cut", [0.5, 3.5, torch.inf])
def test_split_at_gives_each_row_a_part_for_each_group(ends, cut, dtype):
    pre = numbers(N, M, dtype=dtype)
    pre[[0, 7 % N, N - 1]] = -torch.inf  # rows without entries
    codes, values = above(pre, pre.new_tensor(cut))
    split = codes.split_at(torch.tensor([0, *ends[:-1]]))
    assert split.indptr.dtype == torch.int32
    parts = split.dense(values).view(N, len(ends), M)
    start, dense = 0, codes.dense(values)
    for g, end in enumerate(ends):
        assert torch.equal(parts[:, g, start:end], dense[:, start:end])
        assert parts[:, g].count_nonzero() == dense[:, start:end].count_nonzero()
        start = end
    assert torch.equal(split.by_concept[0], codes.by_concept[0])
    assert torch.equal(split.by_concept[1] // len(ends), codes.by_concept[1])


def test_ascending_sorts_the_columns_of_each_row():
    columns = torch.tensor([4, 1, 3, 2, 0], dtype=torch.int32)
    indptr, kept = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.arange(5) != 2
    codes, values = SparseCodes(indptr, columns, 6, kept).ascending(torch.arange(5.0))
    assert codes.columns.tolist() == [1, 4, 0, 2, 3]
    assert values.tolist() == [1, 0, 4, 3, 2]
    assert codes.kept.tolist() == [True, True, True, True, False]
    assert codes.indptr is indptr


def test_split_at_of_no_rows():
    codes, values = above(torch.zeros(0, M), torch.tensor(0.0))
    assert codes.split_at(torch.tensor([0, 4])).indptr.tolist() == [0]
    assert len(values) == 0


# -- values and gradients -------------------------------------------------------------------------


def parameters(m, d, dtype):
    center, weight = 0.1 * numbers(d, dtype=dtype), numbers(m, d, dtype=dtype, seed=1) / d**0.5
    bias, atoms = numbers(m, dtype=dtype, seed=2) / 10, numbers(m, d, dtype=dtype, seed=3)
    return [x.requires_grad_() for x in (center, weight, bias, normalize(atoms, dim=1))]


def loss_of(u, u_hat, z):
    """A loss with gradients of different size in every entry, by codes and reconstruction."""
    return (u - u_hat).square().mean() + (z.abs() ** 1.5).sum() / z.numel()


@pytest.mark.parametrize(
    "n, m, d, k",
    [
        (N, M, D, 5),
        (N, M, D, M),
        (300, 70, 3, 3),
        (1, 64, 7, 1),
        (5, 16, 1, 16),
        (9, 33, 19, 33),
        (3, 8, 300, 4),
        (2, 3, 1100, 2),
    ],
)
def test_values_and_gradients_are_those_of_autograd(dtype, n, m, d, k):
    u = numbers(n, d, dtype=dtype, seed=4)
    theirs, ours = parameters(m, d, dtype), parameters(m, d, dtype)
    center, weight, bias, atoms = theirs
    z = dense_top_k((u - center) @ weight.T + bias, k)
    u_hat = z @ normalize(atoms, dim=1) + center
    loss_of(u, u_hat, z).backward()
    center, weight, bias, atoms = ours
    buffer = Workspace(torch.full((n, m), torch.nan, dtype=dtype))
    values, codes = encode(u, center, weight, bias, lambda pre: top_k(pre, k), buffer)
    u_hat2 = decode(codes, values, atoms, center)
    loss = (u - u_hat2).square().mean() + (values.abs() ** 1.5).sum() / z.numel()
    loss.backward()
    tolerance = TOLERANCE[dtype]
    assert torch.allclose(codes.dense(values), z, atol=tolerance)
    assert torch.allclose(u_hat2, u_hat, atol=10 * tolerance)
    for a, b in zip(theirs, ours, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=5 * tolerance * float(a.grad.abs().max()))


def test_rows_without_codes_and_no_codes_at_all(dtype):
    u, (center, weight, bias, atoms) = numbers(4, D, dtype=dtype), parameters(M, D, dtype)
    none = lambda pre: above(pre, pre.new_tensor(1e9))  # noqa: E731
    values, codes = encode(u, center, weight, bias, none, Workspace(u.new_empty(4, M)))
    u_hat = decode(codes, values, atoms, center)
    assert torch.equal(u_hat, center.expand(4, D))
    (u_hat - u).square().sum().backward()
    assert torch.allclose(center.grad, 2 * (center - u).sum(dim=0))
    assert not any(x.grad.any() for x in (weight, bias, atoms))


def test_a_gradient_that_is_not_contiguous(dtype):
    u, (center, weight, bias, atoms) = numbers(4, D, dtype=dtype), parameters(M, D, dtype)
    values, codes = encode(
        u, center, weight, bias, lambda p: top_k(p, 3), Workspace(u.new_empty(4, M))
    )
    u_hat, other = decode(codes, values, atoms, center), numbers(D, 4, dtype=dtype, seed=5)
    (grad,) = torch.autograd.grad(u_hat, values, other.T)
    dense = other.T @ atoms.T
    expected = dense[codes.rows.long(), codes.columns.long()]
    assert torch.allclose(grad, expected, atol=10 * TOLERANCE[dtype])


# -- layouts --------------------------------------------------------------------------------------


def test_layouts_by_hand():
    codes = SparseCodes(torch.tensor([0, 2, 2, 3]).int(), torch.tensor([2, 0, 2]).int(), 4)
    values = torch.tensor([5.0, 0.0, 7.0])
    assert codes.dense(values).tolist() == [[0, 0, 5, 0], [0, 0, 0, 0], [0, 0, 7, 0]]
    assert codes.rows.tolist() == [0, 0, 2]
    assert codes.fired(values).tolist() == [False, False, True, False]
    starts, rows, order = codes.by_concept
    assert starts.tolist() == [0, 1, 1, 3, 3]
    assert rows.tolist() == [0, 0, 2] and order.tolist() == [1, 0, 2]
    kept, positive = codes.keep(values > 0, values)
    assert kept.indptr.tolist() == [0, 1, 1, 2] and kept.columns.tolist() == [2, 2]
    assert torch.equal(positive, values[values > 0])


# -- threads --------------------------------------------------------------------------------------


def test_results_do_not_depend_on_threads(monkeypatch):
    pre = numbers(200, 600, dtype=torch.float32)
    results = []
    for n_threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        codes, values = top_k(pre, 8)
        results.append(codes.dense(values))
    assert torch.equal(*results)


@pytest.mark.parametrize("turned", [False, True])
def test_reconstruction_error_and_its_gradients(dtype, turned):
    """Against `decode`, whatever the order of the target in memory."""
    u, (center, weight, bias, atoms) = numbers(4, D, dtype=dtype), parameters(M, D, dtype)
    workspace = Workspace(u.new_empty(4, M))
    values, codes = encode(u, center, weight, bias, lambda p: top_k(p, 3), workspace)
    target = numbers(D, 4, dtype=dtype, seed=5).T if turned else numbers(4, D, dtype=dtype, seed=5)
    target = target.detach().requires_grad_()
    inputs = (values, atoms, center, target)
    u_hat, error = reconstruct(codes, values, atoms, center, target)
    plain = decode(codes, values, atoms, center)
    expected = (plain - target).square().mean()
    tolerance = 20 * TOLERANCE[dtype]
    assert torch.allclose(u_hat, plain, atol=tolerance)
    assert torch.allclose(error, expected, atol=tolerance)
    got = torch.autograd.grad(error, inputs, retain_graph=True)
    for one, other in zip(got, torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(one, other, atol=tolerance)
