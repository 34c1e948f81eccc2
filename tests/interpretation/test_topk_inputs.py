import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sksae.activations import KeepRows, Rows
from sksae.activations._rows import rows_frame, rows_of, with_rows
from sksae.interpretation import TopKInputs, _topk_inputs

TEXT = "sea ship sea rock"
VALUES = np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 2.0], [2.0, 0.0, 2.0], [0.5, 0.0, 0.0]])
UNITS = ["sea", "ship", "sea", "rock"]
NAMES = ["0: ship, sea", "1: (dead)", "2: sea, ship"]


def rows():
    start = [0, 4, 9, 13]
    return Rows([0] * 4, start, np.add(start, 4), [TEXT])


def carrying(kind, values=VALUES):
    if kind == "frame":
        return rows_frame(values, rows()).set_axis(["a", "b", "c"], axis=1)
    return with_rows(sparse.csr_matrix(values) if kind == "csr" else values, rows())


def by_loops(values, units, k, key=str):
    """Rank distinct units by maximum, first come first, and stop at zero."""
    found = {}
    for concept in range(values.shape[1]):
        best = {}
        for unit, value in zip(units, values[:, concept].tolist(), strict=True):
            if unit.strip() and value > best.get(key(unit), ("", -np.inf))[1]:
                best[key(unit)] = (unit, value)
        ranked, listed = sorted(best.values(), key=lambda item: -item[1]), {}
        for unit, value in ranked[:k]:
            if value == 0:
                break
            listed[unit] = value
        found[concept] = listed or ({} if (values[:, concept] > 0).any() else None)
    return found


def same(left, right):
    """Equal, the order of the units included."""
    as_lists = [{c: u and list(u.items()) for c, u in found.items()} for found in (left, right)]
    return as_lists[0] == as_lists[1]


@pytest.mark.parametrize("kind", ["dense", "csr", "frame"])
def test_units_are_merged_by_their_maximum_and_sorted(kind):
    found = TopKInputs(k=2).fit(carrying(kind)).interpretations_
    assert same(found, {0: {"ship": 3, "sea": 2}, 1: None, 2: {"sea": 2, "ship": 2}})
    assert all(type(a) is float for units in found.values() for a in (units or {}).values())


def test_fewer_units_than_k():
    found = TopKInputs(k=10).fit(carrying("csr")).interpretations_
    assert list(found[0].items()) == [("ship", 3.0), ("sea", 2.0), ("rock", 0.5)]


@settings(max_examples=80, deadline=None, database=None)
@given(
    units=st.lists(st.sampled_from(["a", "b", "c", "d", "", " "]), min_size=1, max_size=15),
    seed=st.integers(0, 1000),
    k=st.integers(1, 5),
    lowest=st.sampled_from([-3, 0, 1]),
    density=st.sampled_from([0.3, 1.0]),
)
def test_interpretations_are_what_loops_give(units, seed, k, lowest, density):
    rng = np.random.default_rng(seed)
    values = rng.integers(lowest, 4, size=(len(units), 4)) * (rng.random((len(units), 4)) < density)
    values = values.astype(np.float32)
    expected = by_loops(values, units, k)
    for X in (values, sparse.csr_matrix(values), sparse.csr_array(values)):
        assert same(TopKInputs(k).fit(X, units=units).interpretations_, expected)


@settings(max_examples=80, deadline=None, database=None)
@given(
    units=st.lists(st.sampled_from("a A b B straße STRASSE é É".split()), min_size=1, max_size=15),
    seed=st.integers(0, 1000),
    k=st.integers(1, 5),
    lowest=st.sampled_from([-3, 0, 1]),
    indices=st.sampled_from(["all", [2, 0]]),
)
def test_units_that_differ_by_case_are_merged(units, seed, k, lowest, indices):
    rng = np.random.default_rng(seed)
    values = rng.integers(lowest, 4, size=(len(units), 4)).astype(np.float32) / 3
    expected = by_loops(values, units, k, key=str.casefold)
    expected = {i: expected[i] for i in (range(4) if indices == "all" else indices)}
    twice = sparse.csr_matrix(values)  # each entry as the sum of two
    parts = np.repeat(twice.data / 2, 2), np.repeat(twice.indices, 2), 2 * twice.indptr
    for X in (values, twice, sparse.csr_array(parts, shape=values.shape)):
        step = TopKInputs(k, concepts_indices=indices, fold_case=True).fit(X, units=units)
        assert same(step.interpretations_, expected)


def test_merged_units_are_shown_in_the_form_that_is_most_active():
    codes = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    step = TopKInputs(fold_case=True).fit(codes, units=["sea", "Sea", "sky", "SEA"])
    assert same(step.interpretations_, {0: {"Sea": 3, "sky": 2}, 1: {"sea": 2}})
    apart = TopKInputs().fit(codes, units=["sea", "Sea", "sky", "SEA"]).interpretations_
    assert list(apart[0]) == ["Sea", "SEA", "sky", "sea"]
    assert TopKInputs(fold_case=True).fit(codes * 0, units=[""] * 4).interpretations_ == {
        0: None,
        1: None,
    }


def test_wide_codes_of_many_rows_are_never_dense():
    rng = np.random.default_rng(0)
    n, width, active = 20_000, 8_192, 8
    columns = rng.integers(0, width // active, (n, active)) + width // active * np.arange(active)
    parts = rng.random(n * active, dtype=np.float32), columns.ravel(), active * np.arange(n + 1)
    codes = sparse.csr_matrix(parts, shape=(n, width))
    units = [f"Unit{i % 3000}" if i % 2 else f"unit{i % 3000}" for i in range(n)]
    tracemalloc.start()
    try:
        found = TopKInputs(3, fold_case=True).fit(codes, units=units).interpretations_
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * 2**20  # dense, the codes are 655 MB
    few = codes[:, :5].toarray()
    expected = by_loops(few, units, 3, key=str.casefold)
    assert same({i: found[i] for i in range(5)}, expected)


def test_wide_dense_codes_are_read_in_blocks(monkeypatch):
    values = np.random.default_rng(0).integers(0, 3, size=(20, 11)).astype(float)
    units = [f"u{i % 7}" for i in range(20)]
    monkeypatch.setattr(_topk_inputs, "_BLOCK_VALUES", 60)
    found = TopKInputs(3).fit(values, units=units).interpretations_
    assert same(found, by_loops(values, units, 3))


def test_negative_activations_are_listed_only_where_no_unit_is_at_zero():
    X = np.array([[-1.0, -1.0], [2.0, 0.0], [-3.0, 1.0]])
    found = TopKInputs(5).fit(X, units=["a", "b", "c"]).interpretations_
    assert same(found, {0: {"b": 2, "a": -1, "c": -3}, 1: {"c": 1}})


def test_units_without_a_readable_string_are_left_out():
    found = TopKInputs().fit(VALUES, units=["sea", "", " \n", "rock"]).interpretations_
    assert same(found, {0: {"sea": 1, "rock": 0.5}, 1: None, 2: {}})
    assert TopKInputs().fit(VALUES, units=[""] * 4).interpretations_ == {0: {}, 1: None, 2: {}}


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize(
    ("indices", "concepts"),
    [(2, [2]), ([2, 0], [2, 0]), (np.array([1, 1]), [1]), (np.int64(0), [0]), ([], [])],
)
def test_only_some_concepts(kind, indices, concepts):
    step = TopKInputs(2, concepts_indices=indices).fit(carrying(kind))
    assert list(step.interpretations_) == concepts
    assert list(step.get_feature_names_out()) == [
        NAMES[i] if i in concepts else str(i) for i in range(3)
    ]
    everything = TopKInputs(2).fit(carrying(kind)).interpretations_
    assert same(step.interpretations_, {i: everything[i] for i in concepts})


@pytest.mark.parametrize("wrong", [3, -1, [0, 3], [0.5], [True, False, True], [[0, 1]]])
def test_concepts_that_are_not_there_are_refused(wrong):
    with pytest.raises(ValueError) as error:
        TopKInputs(concepts_indices=wrong).fit(carrying("dense"))
    assert str(error.value) == (
        "The 'concepts_indices' parameter of TopKInputs must be 'all' or column indices from 0 "
        f"to 2. Got {wrong!r} instead."
    )


@pytest.mark.parametrize(
    ("parameter", "wrong"), [("k", 0), ("k", 1.5), ("concepts_indices", "x"), ("fold_case", "yes")]
)
def test_parameters_of_the_wrong_kind_are_refused(parameter, wrong):
    with pytest.raises(ValueError, match=rf"^The '{parameter}' parameter of TopKInputs must be"):
        TopKInputs(**{parameter: wrong}).fit(carrying("dense"))


@pytest.mark.parametrize("kind", ["dense", "csr", "frame"])
def test_codes_pass_unchanged(kind):
    X = carrying(kind)
    step = TopKInputs()
    assert step.fit_transform(X) is X
    assert step.transform(X, units=UNITS) is X
    assert step.inverse_transform(X) is X
    assert rows_of(X) == rows()


def test_a_pipeline_ends_in_concepts_and_goes_back():
    X = carrying("dense")
    pipe = Pipeline([("scale", KeepRows(StandardScaler())), ("concepts", TopKInputs(k=2))])
    pipe.fit(X, [0])
    assert pipe.get_feature_names_out()[0] == "0: ship, sea"
    np.testing.assert_allclose(pipe.inverse_transform(pipe.transform(X)), VALUES)


def test_clones_and_pickles():
    step = TopKInputs(k=2, concepts_indices=[2], fold_case=True)
    assert clone(step).get_params() == {"k": 2, "concepts_indices": [2], "fold_case": True}
    restored = pickle.loads(pickle.dumps(step.fit(carrying("csr"))))
    assert same(restored.interpretations_, {2: {"sea": 2, "ship": 2}})


def test_names_are_unique_and_ignore_the_input_s():
    step = TopKInputs(k=2).fit(carrying("frame"))
    assert list(step.get_feature_names_out()) == NAMES
    assert list(step.get_feature_names_out(["p", "q", "r"])) == NAMES
    assert step.get_feature_names_out().dtype == object
    alike = TopKInputs().fit(np.ones((1, 3)), units=["same"])
    assert len(set(alike.get_feature_names_out())) == 3


def test_table_of_the_interpretations():
    table = TopKInputs(k=2).fit(carrying("csr")).to_frame()
    expected = pd.DataFrame(
        {
            "concept": [0, 0, 2, 2],
            "rank": [1, 2, 1, 2],
            "unit": ["ship", "sea", "sea", "ship"],
            "activation": [3.0, 2.0, 2.0, 2.0],
        }
    )
    pd.testing.assert_frame_equal(table, expected)
    nothing = TopKInputs().fit(np.zeros((1, 1)), units=["a"]).to_frame()
    assert list(nothing.columns) == list(expected.columns)
    assert len(nothing) == 0


@pytest.mark.parametrize("kind", ["dense", "frame"])
def test_a_pandas_frame_reads_as_concepts(kind):
    X = carrying(kind)
    step = TopKInputs(k=2).set_output(transform="pandas")
    frame = step.fit_transform(X)
    assert list(frame.columns) == NAMES
    assert rows_of(frame) == rows()
    np.testing.assert_array_equal(frame, VALUES)
    if kind == "frame":
        assert list(X.columns) == ["a", "b", "c"]


def test_a_pandas_frame_without_rows_is_not_renamed():
    X = pd.DataFrame(VALUES, columns=["a", "b", "c"], index=list("pqrs"))
    frame = TopKInputs(k=2).set_output(transform="pandas").fit_transform(X, units=UNITS)
    assert list(frame.columns) == NAMES
    assert list(frame.index) == list("pqrs")
    assert list(X.columns) == ["a", "b", "c"]


def test_polars_frames():
    polars = pytest.importorskip("polars")
    X = polars.DataFrame(VALUES, schema=["a", "b", "c"])
    step = TopKInputs(k=2).set_output(transform="polars")
    assert step.fit_transform(X, units=UNITS).columns == NAMES
    assert X.columns == ["a", "b", "c"]
    assert TopKInputs(k=2).set_output(transform="polars").fit_transform(carrying("dense")).columns


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_sparse_codes_in_a_frame_are_refused(container):
    with pytest.raises(ValueError) as error:
        TopKInputs().set_output(transform=container).fit_transform(carrying("csr"))
    assert str(error.value) == (
        f"TopKInputs got sparse codes but set_output asks for {container}. Set "
        "sparse_output=False on the SAE, or set_output(transform='default') on TopKInputs."
    )


def test_missing_units_name_the_ways_out():
    with pytest.raises(ValueError, match=r"^TopKInputs needs to know the string of each row"):
        TopKInputs().fit(VALUES)
    with pytest.raises(ValueError, match=r"or pass units= \(one string per row\)\.$"):
        TopKInputs().fit_transform(sparse.csr_matrix(VALUES))


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^The 'units' of TopKInputs must have one entry per row"):
        TopKInputs().fit(VALUES, units=["a"])
    with pytest.raises(TypeError) as error:
        TopKInputs().fit(VALUES, units=["a", 3, "b", "c"])
    assert str(error.value) == (
        "The 'units' of TopKInputs must be strings, one per row. Got 3 of type int."
    )


def test_units_win_over_the_rows_of_the_input():
    found = TopKInputs(k=1).fit(carrying("csr"), units=list("pqrs")).interpretations_
    assert found == {0: {"q": 3.0}, 1: None, 2: {"q": 2.0}}


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_nan_and_a_wrong_width_are_refused(kind):
    broken = VALUES.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TopKInputs().fit(carrying(kind, broken))
    with pytest.raises(ValueError, match="X has 2 features, but TopKInputs is expecting 3"):
        TopKInputs().fit(carrying(kind)).transform(carrying(kind)[:, :2])
