"""Selection by a product in bfloat16 against one in float32, on the CPU as on CUDA devices."""

import pytest
import torch
from torch.nn.functional import normalize

from sksae.kernels import Workspace, _cuda, _half, _ops, above, largest, top_k
from sksae.kernels._half import HalfScreened

N, M, D = 128, 4096, 96


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch):
    monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
    monkeypatch.setattr(_cuda, "compiled", lambda: None)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def screened(c=None, weight=None, missed=False):
    c = numbers(N, D) if c is None else c
    weight = normalize(numbers(M, D, seed=1)) if weight is None else weight
    workspace = Workspace(torch.full((N + 3, M), torch.nan), constant=not missed)
    return HalfScreened(workspace, c, weight, 0.1 * numbers(len(weight), seed=2))


def plain(pre):
    return pre.c @ pre.weight.T + pre.bias


@pytest.mark.parametrize("k", [1, 20, 128])
@pytest.mark.parametrize("missed", [False, True])
def test_top_k_is_that_of_the_product_in_float32(k, missed):
    pre = screened(missed=missed)
    codes, values = pre.top_k(k)
    theirs, largest_values = _cuda.top_k(plain(pre), k)
    ours, expected = codes.dense(values), theirs.dense(largest_values)
    assert torch.equal(ours > 0, expected > 0)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert codes.per_row == k and codes.kept.all()
    assert not missed or pre.workspace.n_missed == 0


def test_the_level_is_above_what_rounding_does():
    pre = screened(numbers(N, D) * torch.logspace(-3, 3, N)[:, None])
    off = (pre._half().float() - plain(pre)).abs()
    of_bias, of_rows = pre._level
    level = (of_bias + of_rows * pre.c.norm(dim=1))[:, None] + _half._ROUNDING * plain(pre).abs()
    assert (off < level).all()
    assert off.max() > 1e-3  # and there is some


def test_rows_that_rounding_decides_about_are_computed_whole():
    """As many as are computed again in any case; of more it is said, or nothing is given."""
    c, weight = numbers(N, D), normalize(numbers(M, D, seed=1))
    c -= (c @ weight[0])[:, None] * weight[0]
    weight[:1000] = weight[0] + 1e-4 * numbers(1000, D, seed=3)  # whose pre-codes are level
    for n_level in (1, 2, 5):
        c[:n_level] = 10 * weight[0]
        pre = screened(c, weight, missed=True)
        codes, values = pre.top_k(20)
        assert pre.workspace.n_missed == max(0, n_level - 2)
        theirs, expected = _cuda.top_k(plain(pre), 20)
        found = (codes.dense(values) > 0) == (theirs.dense(expected) > 0)
        assert int((~found.all(dim=1)).sum()) <= max(0, n_level - 2)
        pre = screened(c, weight)
        assert (pre.top_k(20) is None) == (n_level > 2)
        assert (pre.workspace.pause > 0) == (n_level > 2)
        assert pre.workspace.n_screened == (n_level <= 2)
        ours = top_k(pre, 20)
        assert torch.equal(ours[0].dense(ours[1]) > 0, theirs.dense(expected) > 0)


def test_few_positive_pre_codes():
    pre = screened()
    pre.bias -= 3.0
    codes, values = top_k(pre, 50)
    expected = plain(pre).relu()
    assert 0 < int((expected > 0).sum()) < 50 * N
    assert torch.allclose(codes.dense(values), expected, atol=1e-5)
    assert torch.equal(codes.kept, values > 0)


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("cut", [1.0, 2.0])
def test_above_is_that_of_the_product_in_float32(cut, one):
    pre = screened()
    cuts = torch.tensor(cut) if one else cut + 0.2 * numbers(M, seed=4).abs()
    codes, values = above(pre, cuts)
    theirs, expected = above(plain(pre), cuts)
    assert torch.equal(codes.indptr, theirs.indptr)
    assert torch.equal(codes.columns, theirs.columns)
    assert torch.allclose(values, expected, atol=1e-5)
    assert (pre.above(cuts) is None) == (cut == 1.0)  # where too many are above


def test_what_needs_all_pre_codes_has_them():
    pre = screened()
    codes, values, cut = largest(pre, 500, torch.tensor(torch.nan))
    assert torch.equal(cut, plain(pre).flatten().topk(500).values[-1])
    assert pre.top_k(M // 16) is None


def test_numbers_that_are_none_go_on():
    c = numbers(N, D)
    c[5, 3] = torch.nan
    codes, values = screened(c, missed=True).top_k(7)
    assert values.view(N, 7).isnan().any(dim=1).nonzero().tolist() == [[5]]
    assert 0 <= codes.columns.min() and codes.columns.max() < M


@pytest.mark.parametrize(
    "memory, expected",
    [
        (torch.empty(2, M), False),
        (torch.empty(2, M, device="meta"), False),
    ],
)
def test_other_devices_have_other_ways(memory, expected):
    assert Workspace(memory, screen=True).halves == expected
