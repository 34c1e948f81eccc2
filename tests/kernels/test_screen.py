"""Products in small integers that tell which pre-codes to compute: the selection is the same."""

import numpy as np
import pytest
import torch

from sksae.kernels import RowGradients, Workspace, _screen, above, largest, top_k
from sksae.kernels._screen import Rounded, Screened

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(
    _screen.loops() is None, reason="this processor has no fast products of 8-bit integers"
)

N, M, D = 33, 1031, 67
NAN = torch.tensor(torch.nan)


def table(seed=0, scale=1.0):
    generator = torch.manual_seed(seed)
    c = torch.randn(N, D, generator=generator) * scale
    weight = torch.nn.functional.normalize(torch.randn(M, D, generator=generator))
    weight *= torch.rand(M, 1, generator=generator) + 0.5
    return c, weight, 0.1 * scale * torch.randn(M, generator=generator)


def both(c, weight, bias):
    """Pre-codes in full precision, and screened ones."""
    memory = torch.empty(len(c) + 3, len(weight))
    screened = Workspace(memory, screen=True).pre_codes(c, weight, bias)
    return torch.addmm(bias, c, weight.T), screened


def assert_same(got, expected, scale=1.0):
    (codes, values), (codes_full, values_full) = got, expected
    dense, full = codes.dense(values), codes_full.dense(values_full)
    assert torch.equal(dense != 0, full != 0)
    assert torch.allclose(dense, full, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_largest_of_each_row(k, scale):
    full, screened = both(*table(scale=scale))
    assert isinstance(screened, Screened)
    assert_same(top_k(screened, k), top_k(full, k), scale)


@pytest.mark.parametrize("share", [0.002, 0.02])
def test_what_exceeds_a_cut(share):
    full, screened = both(*table())
    cut = full.flatten().quantile(1 - share)
    assert_same(above(screened, cut), above(full, cut))
    cuts = cut + torch.linspace(-0.2, 0.2, M)
    assert_same(above(screened, cuts), above(full, cuts))


@pytest.mark.parametrize("expected", [1.5, 50.0, torch.nan])
def test_the_largest_of_a_batch_whatever_is_expected(expected):
    full, screened = both(*table())
    *got, cut = largest(screened, 5 * N, torch.tensor(expected))
    *plain, cut_full = largest(full, 5 * N, NAN)
    assert_same(got, plain)
    assert cut == pytest.approx(cut_full)


def test_rows_with_huge_features_are_coarse_and_still_right():
    c, weight, bias = table()
    c[:, 3] *= 300
    weight[:, 3] = 0  # seen by nothing, but it makes the rounding of the row coarse
    full, screened = both(c, weight, bias)
    assert_same(top_k(screened, 8), top_k(full, 8), 300)
    assert screened.workspace.pause  # so many candidates do not pay


def test_many_ties_and_rows_of_zeros():
    c, weight, bias = table()
    c[4], weight[5:50], bias[:] = 0, weight[5], 0
    c[7] = weight[5]
    full, screened = both(c, weight, bias)
    (codes, values), (_, values_full) = top_k(screened, 10), top_k(full, 10)
    assert codes.indptr.diff()[4] == 0
    assert torch.allclose(
        codes.dense(values)[7].sort().values,
        top_k(full, 10)[0].dense(values_full)[7].sort().values,
        atol=1e-5,
    )


def test_too_many_above_a_cut_are_left_to_a_full_product():
    full, screened = both(*table())
    assert_same(above(screened, torch.zeros(())), above(full, torch.zeros(())))
    assert screened.workspace.pause
    assert_same(top_k(screened, 3), top_k(full, 3))  # the integers are overwritten by now


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_cannot_be_rounded_is_computed_in_full(bad):
    c, weight, bias = table()
    c[2, 3] = bad
    full, screened = both(c, weight, bias)
    assert screened.top_k(5) is None
    assert both(c, weight, bias)[1].above(torch.full((M,), 2.0)) is None
    assert torch.equal(screened.dense().isfinite(), full.isfinite())
    c, weight, bias = table()
    weight[2, 3] = bad
    assert isinstance(both(c, weight, bias)[1], torch.Tensor)


def test_a_bias_that_is_not_finite_is_computed_in_full():
    c, weight, bias = table()
    bias[2] = torch.nan
    assert isinstance(both(c, weight, bias)[1], torch.Tensor)


def test_small_and_precise_problems_are_computed_in_full():
    c, weight, bias = table()
    assert isinstance(both(c, weight[:512], bias[:512])[1], torch.Tensor)
    assert isinstance(both(c[:, :16].contiguous(), weight[:, :16], bias)[1], torch.Tensor)
    assert isinstance(both(c[:2], weight, bias)[1], torch.Tensor)
    workspace = Workspace(torch.empty(N, M, dtype=torch.float64), screen=True)
    doubled = (t.double() for t in (c, weight, bias))
    assert isinstance(workspace.pre_codes(*doubled), torch.Tensor)


def test_rounding_loses_at_most_half_a_step():
    rows = table()[0]
    rounded = Rounded(rows)
    rounded.round(0, 20)
    rounded.round(20, N)
    back = rounded.whole * rounded.scale[:, None]
    assert ((rows - back).abs() <= 0.5001 * rounded.scale[:, None]).all()
    assert rounded.whole.abs().amax(1).eq(127).all()
    assert torch.allclose(rounded.norm, rows.norm(dim=1))
    assert torch.allclose(rounded.rest, (rows - back).norm(dim=1), rtol=1e-3)


def test_weights_that_stay_are_rounded_once():
    c, weight, bias = table()
    workspace = Workspace(torch.empty(N, M), screen=True, constant=True)
    first = workspace.pre_codes(c, weight, bias).table
    assert workspace.pre_codes(c, weight, bias).table is first
    workspace = Workspace(torch.empty(N, M), screen=True)
    first = workspace.pre_codes(c, weight, bias).table
    assert workspace.pre_codes(c, weight, bias).table is not first


def test_weights_are_rounded_by_the_step_that_changes_them():
    c, weight, bias = table()
    workspace, weight = Workspace(torch.empty(N, M), screen=True), torch.nn.Parameter(weight)
    optimizer = torch.optim.Adam([weight])
    first = workspace.pre_codes(c, weight, bias)
    codes, values = top_k(first, 4)
    gradients = RowGradients(workspace=workspace)
    gradients.add("encoder", codes, values, c, False)
    gradients.step({"encoder": weight}, optimizer)
    second = workspace.pre_codes(c, weight, bias)
    assert second.table is first.table
    anew = Rounded(weight)
    anew.round(0, M)
    assert torch.equal(second.table.whole, anew.whole)
    assert torch.equal(torch.stack(second.table.each), torch.stack(anew.each))
    with torch.no_grad():
        weight.mul_(2)
    assert workspace.pre_codes(c, weight, bias).table is not second.table


def test_weights_may_have_changed_where_nobody_looked():
    c, weight, bias = table()
    workspace = Workspace(torch.empty(N, M), screen=True)
    kept = workspace.pre_codes(c, weight, bias).table
    kept.keep(weight)
    assert workspace.pre_codes(c, weight, bias).table is kept
    workspace.forget()
    assert workspace.pre_codes(c, weight, bias).table is not kept


def test_roundings_of_weights_that_a_step_changed_unseen_are_not_kept():
    c, weight, bias = table()
    workspace, weight = Workspace(torch.empty(N, M), screen=True), torch.nn.Parameter(weight)
    optimizer = torch.optim.Adam([weight])

    def step():
        pre = workspace.pre_codes(c, weight, bias)
        codes, values = top_k(pre, 4)
        gradients = RowGradients(workspace=workspace)
        gradients.add("encoder", codes, values, c, False)
        return pre, lambda: gradients.step({"encoder": weight}, optimizer)

    step()[1]()
    before, finish = step()
    workspace.pause = 1  # as a batch that is too coarse leaves it
    finish()
    assert isinstance(workspace.pre_codes(c, weight, bias), torch.Tensor)
    assert workspace.pre_codes(c, weight, bias).table is not before.table
