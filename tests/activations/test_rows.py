import copy
import os
import pickle
import random
import tempfile
import warnings
from dataclasses import dataclass, replace

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, StandardScaler
from sklearn.utils import resample, shuffle
from sklearn.utils.sparsefuncs import inplace_csr_column_scale, inplace_swap_row

from sksae.activations import KeepRows, Rows
from sksae.activations._rows import (
    RowsArray,
    RowsCSRArray,
    RowsCSRMatrix,
    check_frame_output,
    resolve_groups,
    resolve_units,
    rows_frame,
    rows_of,
    with_rows,
)

N_ROWS, N_COLUMNS = 12, 3
CONTAINERS = [RowsArray, RowsCSRMatrix, RowsCSRArray]


def origin_rows():
    """Rows of four texts; the unit of row i is "r<i>"."""
    units = [f"r{i}" for i in range(N_ROWS)]
    texts, text, start = ["", "", "", ""], [], []
    for i, unit in enumerate(units):
        t = i // 3
        text.append(t)
        start.append(len(texts[t]))
        texts[t] += f" {unit}"
    end = [s + 1 + len(u) for s, u in zip(start, units, strict=True)]
    return Rows(text, start, end, texts)


def make(container, dtype=np.float64):
    """A matrix whose row i holds multiples of i + 1, and the multipliers."""
    slope = np.arange(1.0, N_COLUMNS + 1)
    values = (np.arange(1, N_ROWS + 1)[:, None] * slope).astype(dtype)
    if container is RowsArray:
        return with_rows(values, origin_rows()), slope
    return container(values)._set_rows(origin_rows()), slope


def dense(X):
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


@dataclass
class Tracked:
    """A matrix and the map of each column: value = slope * (original row + 1) + shift."""

    X: object
    slope: np.ndarray
    shift: np.ndarray

    def origins(self):
        """The original number of each row, read from the values; -1 for none."""
        decoded = (dense(self.X).astype(float) - self.shift) / self.slope - 1
        nearest = np.rint(decoded)
        valid = (np.abs(decoded - nearest) < 0.05).all(axis=1)
        valid &= (nearest == nearest[:, :1]).all(axis=1)
        valid &= (nearest[:, 0] >= 0) & (nearest[:, 0] < N_ROWS)
        return np.where(valid, nearest[:, 0], -1).astype(int)


def assert_never_stale(tracked):
    rows = rows_of(tracked.X)
    if rows is not None:
        origins = tracked.origins()
        assert list(rows.units) == [f"r{i}" if i >= 0 else "?" for i in origins]
        assert rows == origin_rows()[origins]


# Each operation takes (matrix, generator) and gives a matrix whose columns are the same.


def some(X, rng, size=None):
    return rng.integers(-X.shape[0], X.shape[0], size=size or X.shape[0])


def some_mask(X, rng):
    mask = rng.random(X.shape[0]) < 0.7
    mask[rng.integers(X.shape[0])] = True
    return mask


def some_slice(X, rng):
    return slice(rng.integers(X.shape[0]), None, rng.integers(1, 3))


def number(rng):
    return rng.choice([2.0, 0.5, -3.0, 4.0])


def through_joblib(X, rng):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "X.joblib")
        joblib.dump(X, path)
        loaded = joblib.load(path, mmap_mode="c" if rng.random() < 0.5 else None)
        if rows_of(X) is not None:
            assert rows_of(loaded) == rows_of(X)
        return copy.deepcopy(loaded)


def dense_permutation(X, rng):
    return rng.permutation(X.shape[0])


def write_row(X, rng):
    X[rng.integers(X.shape[0])] = X[rng.integers(X.shape[0])]
    return X


def write_permuted(X, rng):
    X[:] = X[rng.permutation(X.shape[0])]
    return X


def write_through_view(X, rng):
    view = X[1:]
    view[...] = np.asarray(view)[::-1].copy()
    return X


def write_through_transpose(X, rng):
    X.T[...] = np.asarray(X.T)[:, ::-1].copy()
    return X


def write_copyto(X, rng):
    reverse = np.asarray(X)[::-1].copy()
    np.copyto(X, reverse) if rng.random() < 0.5 else np.copyto(dst=X, src=reverse)
    return X


def write_put(X, rng):
    values = np.asarray(X)[::-1].ravel().copy()
    np.put(X, np.arange(X.size), values) if rng.random() < 0.5 else X.put(range(X.size), values)
    return X


def write_putmask(X, rng):
    np.putmask(X, np.ones(X.shape, dtype=bool), np.asarray(X)[::-1].copy())
    return X


def write_flat(X, rng):
    X.flat = np.asarray(X)[::-1].copy()
    return X


def write_take(X, rng):
    out = X.copy()
    order = rng.permutation(X.shape[0])
    if rng.random() < 0.5:
        np.take(X, order, 0, out)
    else:
        X.take(order, axis=0, out=out)
    return out


def write_compress(X, rng):
    out = X[::-1]
    np.compress(np.ones(X.shape[0], dtype=bool), X.copy(), 0, out)
    return out


def write_dot(X, rng):
    out = X.copy()
    flip = np.eye(X.shape[0], dtype=X.dtype)[::-1].copy()
    np.dot(flip, np.asarray(X), out) if rng.random() < 0.5 else np.matmul(flip, X, out=out)
    return out


def write_where(X, rng):
    out = X[::-1].copy()
    np.multiply(X, 1.0, out=out, where=(np.arange(X.shape[0]) % 2 == 0)[:, None])
    return out


def write_out(X, rng):
    return np.multiply(X, 1.0, out=X[::-1].copy())


def write_concatenate(X, rng):
    out = X.copy()
    np.concatenate([X[1:], X[:1]], out=out)
    return out


def sort_in_place(X, rng):
    X.sort(axis=0) if rng.random() < 0.5 else X.T.sort()
    return X


def partition_in_place(X, rng):
    X.partition(X.shape[0] // 2, axis=0)
    return X


def shuffle_in_place(X, rng):
    kind = rng.integers(4)
    if kind == 0:
        rng.shuffle(X)
    elif kind == 1:
        rng.shuffle(X.T, axis=1)
    elif kind == 2:
        np.random.RandomState(rng.integers(100)).shuffle(X)
    else:
        random.Random(int(rng.integers(100))).shuffle(X)
    return X


def subtract_and_add(X, rng):
    X += 1
    X -= 1
    return X


ROW_OPERATIONS = [
    lambda X, rng: X[some_slice(X, rng)],
    lambda X, rng: X[::-1],
    lambda X, rng: X[some_mask(X, rng)],
    lambda X, rng: X[some_mask(X, rng).tolist()],
    lambda X, rng: X[some(X, rng)],
    lambda X, rng: X[some(X, rng).tolist()],
    lambda X, rng: X[some(X, rng), :],
    lambda X, rng: X[some_mask(X, rng), :],
    lambda X, rng: X[some(X, rng)[:, None], np.arange(X.shape[1])[None, :]],
    lambda X, rng: X.copy(),
    lambda X, rng: copy.copy(X),
    lambda X, rng: copy.deepcopy(X),
    lambda X, rng: pickle.loads(pickle.dumps(X, protocol=int(rng.integers(2, 6)))),
    lambda X, rng: X.astype(np.float32),
    lambda X, rng: X.astype(np.float64, copy=False),
    through_joblib,
    lambda X, rng: shuffle(X, random_state=int(rng.integers(100))),
    lambda X, rng: resample(X, random_state=int(rng.integers(100))),
    lambda X, rng: train_test_split(X, random_state=0)[rng.integers(2)] if len_(X) > 1 else X,
    lambda X, rng: KeepRows(FunctionTransformer(accept_sparse=True)).fit_transform(X),
]

DENSE_OPERATIONS = [
    *ROW_OPERATIONS,
    lambda X, rng: X[..., :],
    lambda X, rng: X[some(X, rng), ...],
    lambda X, rng: X[np.ix_(some_mask(X, rng), range(X.shape[1]))],
    lambda X, rng: np.take(X, some(X, rng), axis=0),
    lambda X, rng: X.take(some(X, rng), axis=0),
    lambda X, rng: np.compress(some_mask(X, rng), X, axis=0),
    lambda X, rng: np.sort(X, axis=0),
    lambda X, rng: np.roll(X, 1, axis=0),
    lambda X, rng: np.flip(X, axis=0),
    lambda X, rng: np.flipud(X),
    lambda X, rng: np.concatenate([X[1:], X[:1]]),
    lambda X, rng: np.vstack([X[1:], X]),
    lambda X, rng: np.repeat(X, 2, axis=0)[: X.shape[0]],
    lambda X, rng: np.tile(X, (2, 1))[1 : 1 + X.shape[0]],
    lambda X, rng: np.delete(X, 0, axis=0) if len(X) > 1 else X,
    lambda X, rng: np.insert(X, 0, X[-1], axis=0),
    lambda X, rng: np.unique(X, axis=0),
    lambda X, rng: np.asarray(X, dtype=np.float64),
    lambda X, rng: np.asanyarray(X),
    lambda X, rng: np.array(X, subok=True),
    lambda X, rng: X.reshape(X.shape),
    lambda X, rng: X.T.T[::-1],
    lambda X, rng: np.where(True, X[::-1], X),
    lambda X, rng: rng.permutation(X),
    lambda X, rng: rng.permuted(X[[0]], axis=0),
    lambda X, rng: rng.choice(X, X.shape[0]),
    write_row,
    write_permuted,
    write_through_view,
    write_through_transpose,
    write_copyto,
    write_put,
    write_putmask,
    write_flat,
    write_take,
    write_compress,
    write_dot,
    write_where,
    write_out,
    write_concatenate,
    sort_in_place,
    partition_in_place,
    shuffle_in_place,
    subtract_and_add,
]


def swap_rows(X, rng):
    inplace_swap_row(X, int(rng.integers(X.shape[0])), int(rng.integers(X.shape[0])))
    return X


def tidy(X, rng):
    X.eliminate_zeros()
    X.sum_duplicates()
    X.sort_indices()
    X.prune()
    return X


def resize_rows(X, rng):
    X.resize(max(X.shape[0] - 1, 1), X.shape[1])
    return X


def write_sparse_row(X, rng):
    X[[int(rng.integers(X.shape[0]))]] = X[[int(rng.integers(X.shape[0]))]]
    return X


def sparse_permutation(X, rng):
    return sparse.csr_array(np.eye(X.shape[0])[rng.permutation(X.shape[0])]) @ X


SPARSE_OPERATIONS = [
    *ROW_OPERATIONS,
    lambda X, rng: X.T.T.tocsr(),
    lambda X, rng: X.tocsc()[::-1].tocsr(),
    lambda X, rng: X.tocoo().tocsr(),
    lambda X, rng: X.tocsr(copy=True),
    lambda X, rng: X.reshape(X.shape),
    lambda X, rng: type(X)(X),
    lambda X, rng: X.sorted_indices(),
    lambda X, rng: sparse.vstack([X[1:], X[:1]], format="csr"),
    lambda X, rng: sparse.hstack([X[::-1]], format="csr"),
    lambda X, rng: X.maximum(X[::-1]).minimum(X[::-1]),
    sparse_permutation,
    write_sparse_row,
    swap_rows,
    tidy,
    resize_rows,
]


def len_(X):
    return X.shape[0]


# Operations that change the map of the columns take and give a Tracked.


def pick_columns(t, rng):
    picked = rng.permutation(t.X.shape[1])[: rng.integers(1, t.X.shape[1] + 1)]
    tail = slice(min(1, t.X.shape[1] - 1), None)
    key = [picked, picked.tolist(), slice(None, None, -1), tail][rng.integers(4)]
    return Tracked(t.X[:, key], t.slope[key], t.shift[key])


def scale(t, rng):
    c = number(rng)
    ways = [
        lambda X: (X * c, c),
        lambda X: (c * X, c),
        lambda X: (X / c, 1 / c),
        lambda X: (X * np.float32(c), c),
        lambda X: (X * int(c * 2), int(c * 2)),
    ]
    if sparse.issparse(t.X):
        ways.append(lambda X: (X.multiply(c), c))
    else:
        ways.append(lambda X: (np.multiply(c, X), c))
    X, factor = ways[rng.integers(len(ways))](t.X)
    return Tracked(X, t.slope * factor, t.shift * factor)


def scale_in_place(t, rng):
    c = number(rng)
    t.X *= c
    return Tracked(t.X, t.slope * c, t.shift * c)


def standardise(t, rng):
    step = KeepRows(StandardScaler(with_mean=not sparse.issparse(t.X)))
    X = step.fit_transform(t.X)
    mean = 0 if sparse.issparse(X) else step.transformer_.mean_
    scale_ = step.transformer_.scale_
    return Tracked(X, t.slope / scale_, (t.shift - mean) / scale_)


def max_abs(t, rng):
    step = MaxAbsScaler()
    X = step.fit_transform(t.X) if rng.random() < 0.5 else KeepRows(step).fit_transform(t.X)
    factor = 1 / np.where(m := abs(dense(t.X)).max(axis=0), m, 1)
    return Tracked(X, t.slope * factor, t.shift * factor)


def column_scale(t, rng):
    factor = rng.choice([0.5, 2.0], size=t.X.shape[1])
    if sparse.issparse(t.X):
        inplace_csr_column_scale(t.X, factor.astype(t.X.dtype))
    else:
        t.X *= factor
    return Tracked(t.X, t.slope * factor, t.shift * factor)


IN_PLACE_MAPS = [scale_in_place, column_scale]
MAPPED = [pick_columns, scale, scale_in_place, standardise, max_abs, column_scale]


def apply(tracked, operation, seed):
    rng = np.random.default_rng(seed)
    if operation in MAPPED:
        return operation(tracked, rng)
    return replace(tracked, X=operation(tracked.X, rng))


def with_true_rows(tracked, container):
    """Attach the rows that the values tell, or None where they tell none."""
    origins = tracked.origins()
    if (origins < 0).any() or not len(origins):
        return None
    X = dense(tracked.X)
    rows = origin_rows()[origins]
    X = with_rows(X.copy(), rows) if container is RowsArray else container(X)._set_rows(rows)
    return replace(tracked, X=X)


def run(container, steps, operations):
    X, slope = make(container)
    tracked, earlier = Tracked(X, slope, np.zeros(N_COLUMNS)), []
    for index, seed in steps:
        earlier = [] if operations[index] in IN_PLACE_MAPS else [*earlier, tracked]
        tracked = apply(tracked, operations[index], seed)
        for matrix in (tracked, *earlier):
            assert_never_stale(matrix)
        if rows_of(tracked.X) is None:
            tracked = with_true_rows(tracked, container)
        if tracked is None:
            return


def sequences(operations):
    step = st.tuples(st.integers(0, len(operations) - 1), st.integers(0, 2**16))
    return st.lists(step, min_size=1, max_size=10)


ALL_DENSE = DENSE_OPERATIONS + MAPPED
ALL_SPARSE = SPARSE_OPERATIONS + MAPPED
SETTINGS = settings(max_examples=150, deadline=None, database=None)


@SETTINGS
@example(steps=[(DENSE_OPERATIONS.index(write_where), 0)])
@given(steps=sequences(ALL_DENSE))
def test_rows_of_an_array_are_never_stale(steps):
    run(RowsArray, steps, ALL_DENSE)


@pytest.mark.parametrize("container", [RowsCSRMatrix, RowsCSRArray])
def test_rows_of_a_csr_are_never_stale(container):
    @SETTINGS
    @given(steps=sequences(ALL_SPARSE))
    def check(steps):
        run(container, steps, ALL_SPARSE)

    check()


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_operation_alone_is_never_stale(container):
    operations = ALL_DENSE if container is RowsArray else ALL_SPARSE
    for index in range(len(operations)):
        for seed in range(6):
            run(container, [(index, seed)], operations)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "operation",
    [
        lambda X: X[2:5],
        lambda X: X[::-2],
        lambda X: X[np.arange(N_ROWS) % 3 == 0],
        lambda X: X[[4, 4, -1]],
        lambda X: X[[4, 1], :],
        lambda X: X[1:3, 1:],
        lambda X: X[:, [1]],
        lambda X: X[[]],
        lambda X: X.copy(),
        lambda X: copy.copy(X),
        lambda X: copy.deepcopy(X),
        lambda X: pickle.loads(pickle.dumps(X)),
        lambda X: X.astype(np.float32),
        lambda X: X * 2,
        lambda X: 0.5 * X,
        lambda X: X / np.float32(2),
    ],
)
def test_operations_that_map_rows_to_rows_keep_them(container, operation):
    X, _ = make(container)
    out = operation(X)
    assert type(out) is container
    assert len(rows_of(out)) == out.shape[0]
    column = dense(out)[:, 0]
    if len(column):
        numbers = [int(unit[1:]) + 1 for unit in rows_of(out).units]
        np.testing.assert_allclose(column / column[0], np.array(numbers) / numbers[0])


@pytest.mark.parametrize("container", CONTAINERS)
def test_scaling_in_place_and_tidying_keep_the_rows(container):
    X, _ = make(container)
    X *= 2
    X /= 4
    if sparse.issparse(X):
        tidy(X, None)
    assert X.rows == origin_rows()


@pytest.mark.parametrize(
    "operation",
    [
        lambda X: X + 1,
        lambda X: X * X,
        lambda X: X * np.ones(N_COLUMNS),
        lambda X: X.T,
        lambda X: X.reshape(-1),
        lambda X: X[None],
        lambda X: X[np.array(True)],
        lambda X: X[True],
        lambda X: X[np.asarray(X) > 3],
        lambda X: X[np.array([[0, 1], [2, 3]])],
        lambda X: X[[0, 1], [0, 1]],
        lambda X: X.sum(axis=0),
        lambda X: X.max(axis=1, keepdims=True),
        lambda X: np.take(X, [1, 0], axis=0),
        lambda X: np.sort(X, axis=0),
        lambda X: np.concatenate([X, X]),
        lambda X: X.view(),
        lambda X: X.round(),
    ],
)
def test_other_operations_on_an_array_drop_the_rows(operation):
    X, _ = make(RowsArray)
    assert rows_of(operation(X)) is None
    assert X.rows == origin_rows()


@pytest.mark.parametrize("container", [RowsCSRMatrix, RowsCSRArray])
@pytest.mark.parametrize(
    "operation",
    [
        lambda X: abs(X),
        lambda X: X + X,
        lambda X: X.multiply(X),
        lambda X: X.T,
        lambda X: X.tocsc(),
        lambda X: X @ sparse.eye_array(N_COLUMNS),
        lambda X: X.toarray(),
        lambda X: sparse.vstack([X, X]),
    ],
)
def test_other_operations_on_a_csr_drop_the_rows(container, operation):
    X, _ = make(container)
    assert rows_of(operation(X)) is None
    assert X.rows == origin_rows()


def test_one_row_or_one_column_of_an_array_keeps_its_rows():
    X, _ = make(RowsArray)
    assert list(X[3].rows.units) == ["r3"]
    assert list(X[-1, 1:].rows.units) == [f"r{N_ROWS - 1}"]
    assert list(X[1:4, 0].rows.units) == ["r1", "r2", "r3"]
    assert X[3][:2].rows is None


def test_a_write_through_one_view_drops_the_rows_of_the_others():
    X, _ = make(RowsArray)
    head, tail = X[:4], X[6:]
    head[0] = head[1]
    assert head.rows is None
    assert X.rows is None
    assert tail.rows is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda X: X.setfield(np.zeros(X.shape), X.dtype),
        lambda X: X.choose([X, X], out=X),
        lambda X: np.add.at(X, [0, 1], 5),
        lambda X: np.fill_diagonal(X, 0),
        lambda X: np.place(X, np.asarray(X) > 3, [0]),
        lambda X: np.clip(X, 0, 1, out=X),
        lambda X: X.partition(2, axis=0),
        lambda X: X.__setitem__((0, 0), 1),
    ],
)
def test_writes_drop_the_rows(write):
    X = make(RowsArray)[0].astype(int) % 2
    X = with_rows(np.asarray(X), origin_rows())
    write(X)
    assert X.rows is None


def test_an_array_with_rows_is_not_resized_in_place():
    X, _ = make(RowsArray)
    X = X.copy()
    with pytest.raises(ValueError, match="cannot resize"):
        X.resize((N_ROWS, 1), refcheck=False)
    assert X.rows == origin_rows()


def test_a_write_into_a_csr_drops_the_rows_of_those_that_share_its_values():
    X, _ = make(RowsCSRMatrix)
    shared = KeepRows(FunctionTransformer(accept_sparse=True)).fit_transform(X)
    assert shared.rows == X.rows == origin_rows()
    shared[[0]] = shared[[4]]
    assert shared.rows is None
    assert X.rows is None


@pytest.mark.parametrize("container", [RowsCSRMatrix, RowsCSRArray])
def test_swapping_rows_in_place_drops_the_rows(container):
    X, _ = make(container)
    inplace_swap_row(X, 0, 4)
    assert X.rows is None


@pytest.mark.parametrize("container", [RowsCSRMatrix, RowsCSRArray])
def test_writing_into_a_csr_drops_the_rows(container):
    X, _ = make(container)
    X[0, 0] = 5
    assert X.rows is None
    X, _ = make(container)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparse.SparseEfficiencyWarning)
        X.resize(3, 2)
    assert X.rows is None


def test_rows_know_units_groups_and_texts_without_rows():
    rows = Rows([0, 0, 2], [0, 2, 0], [2, 8, 3], ["An apple", "", "Sea"])
    assert list(rows.units) == ["An", "apple", "Sea"]
    assert rows.groups.tolist() == [0, 0, 2]
    assert rows.n_texts == 3
    assert len(rows) == 3
    assert repr(rows) == "Rows(n_rows=3, n_texts=3)"


def test_special_tokens_give_their_own_string():
    rows = Rows([0, 0], [0, 0], [0, 2], ["An apple"], specials=["[CLS]", None])
    assert list(rows.units) == ["[CLS]", "An"]
    assert list(rows[[1, 0]].units) == ["An", "[CLS]"]
    assert copy.deepcopy(rows) == pickle.loads(pickle.dumps(rows)) == rows
    assert rows != Rows([0, 0], [0, 0], [0, 2], ["An apple"])
    assert rows != "rows"


def test_rows_refuse_arrays_of_different_lengths():
    with pytest.raises(ValueError, match=r"^Rows needs one entry per row in each array, got \["):
        Rows([0, 1], [0, 1], [2], ["ab"])


def test_rows_without_texts_say_how_to_pass_the_units():
    rows = Rows([0, 1], [0, 0], [1, 1], None)
    assert rows.n_texts == 2
    assert Rows([], [], [], None).n_texts == 0
    with pytest.raises(ValueError, match="know the numbers of their texts but not the texts"):
        _ = rows.units


def test_deepcopy_shares_the_texts():
    X, _ = make(RowsArray)
    assert copy.deepcopy(X).rows.texts is X.rows.texts
    assert copy.deepcopy(X).rows.text is not X.rows.text


def test_with_rows_refuses_another_number_of_rows():
    with pytest.raises(ValueError, match=r"^12 rows do not describe a matrix of shape \(3, 2\)\.$"):
        with_rows(np.zeros((3, 2)), origin_rows())


@pytest.mark.parametrize("container", CONTAINERS)
def test_with_rows_none_gives_a_plain_container(container):
    X, _ = make(container)
    plain = with_rows(X, None)
    assert not isinstance(plain, container)
    assert rows_of(plain) is None
    np.testing.assert_array_equal(dense(plain), dense(X))


def test_frames_carry_rows_in_their_index():
    X, _ = make(RowsArray)
    frame = rows_frame(X, X.rows)
    assert list(frame.index.names) == ["text", "start", "end"]
    assert rows_of(frame) == X.rows
    assert rows_of(frame.iloc[[3, 1]]) == X.rows[[3, 1]]
    assert rows_of(frame.sort_values(0, ascending=False)) == X.rows[::-1]
    renamed = rows_frame(pd.DataFrame({"a": np.arange(N_ROWS)}), X.rows)
    assert rows_of(renamed) == X.rows
    assert list(renamed.columns) == ["a"]


def test_rows_of_reads_no_foreign_attribute():
    polars = pytest.importorskip("polars")
    for foreign in (
        sparse.lil_array(np.eye(3)),
        polars.DataFrame({"a": [1]}),
        pd.DataFrame({"rows": [1]}),
        [[1.0]],
        np.eye(2),
    ):
        assert rows_of(foreign) is None


def test_resolve_groups():
    X, _ = make(RowsArray)
    text, n_texts = resolve_groups(X, None, "Step")
    assert (text.tolist(), n_texts) == (origin_rows().text.tolist(), 4)
    text, n_texts = resolve_groups(np.zeros((3, 1)), [0, 5, 0], "Step")
    assert (text.tolist(), n_texts) == ([0, 5, 0], 6)
    assert resolve_groups(np.zeros((0, 1)), np.array([], dtype=int), "Step")[1] == 0


def test_missing_rows_are_an_error_with_three_ways_out():
    plain = np.zeros((2, 1))
    ways = (
        "Give it the output of a TransformerActivationExtractor or of an SAE after one; wrap a "
        "scikit-learn step in between in KeepRows(...); or pass "
    )
    with pytest.raises(ValueError) as error:
        resolve_groups(plain, None, "Step")
    assert str(error.value) == (
        f"Step needs to know the text of each row. {ways}groups= (the text's index of each row)."
    )
    with pytest.raises(ValueError) as error:
        resolve_units(plain, None, "Step")
    assert str(error.value) == (
        f"Step needs to know the string of each row. {ways}units= (one string per row)."
    )


def test_groups_that_do_not_fit_are_refused():
    plain = np.zeros((2, 1))
    with pytest.raises(ValueError) as error:
        resolve_groups(plain, [0, 1, 1], "Step")
    assert str(error.value) == (
        "The 'groups' of Step must have one entry per row: expected 2, got shape (3,)."
    )
    for groups, got in ([0.5, 1.0], "float64 values from 0.5"), ([-1, 0], "int64 values from -1"):
        with pytest.raises(ValueError) as error:
            resolve_groups(plain, groups, "Step")
        assert str(error.value) == (
            "The 'groups' of Step must be the index of each row's text, integers from 0 on. "
            f"Got {got} instead."
        )


def test_units_must_have_one_entry_per_row():
    assert list(resolve_units(np.zeros((2, 1)), ("a", "b"), "Step")) == ["a", "b"]
    with pytest.raises(ValueError) as error:
        resolve_units([[1.0], [2.0]], ["a"], "Step")
    assert str(error.value) == (
        "The 'units' of Step must have one entry per row: expected 2, got shape (1,)."
    )


def test_sparse_codes_in_a_frame_are_refused():
    step = StandardScaler().set_output(transform="pandas")
    assert check_frame_output(np.eye(2), step) == "pandas"
    with pytest.raises(ValueError) as error:
        check_frame_output(sparse.csr_array(np.eye(2)), step)
    assert str(error.value) == (
        "StandardScaler got sparse codes but set_output asks for pandas. Set "
        "sparse_output=False on the SAE, or set_output(transform='default') on StandardScaler."
    )


def test_one_row_by_its_number():
    rows = Rows([0, 0, 1], [0, 3, 0], [2, 8, 3], ["An apple", "Sea"])
    assert [str(unit) for unit in rows[1].units] == ["apple"]
    assert rows[np.int64(-1)] == rows[2:]
    with pytest.raises(IndexError):
        rows[3]
