import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import config_context, get_config
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from sksae.activations import ConceptPooler, Rows
from sksae.activations._rows import rows_frame, with_rows
from sksae.interpretation import TopKInputs

POOLINGS = ["max", "mean", "sum", "count"]
TEXTS = ["aa bb", "", "cc dd ee", "ff"]
TEXT_OF_ROW = [0, 0, 2, 2, 2, 3]
VALUES = np.array(
    [
        [1.0, 0.0, -1.0],
        [3.0, 0.0, -2.0],
        [0.0, 0.5, -1.0],
        [2.0, 0.0, 0.0],
        [0.0, 1.5, -3.0],
        [0.0, 0.0, 4.0],
    ]
)


def rows():
    start = [0, 3, 0, 3, 6, 0]
    return Rows(TEXT_OF_ROW, start, np.add(start, 2), TEXTS)


def carrying(kind, values=VALUES):
    if kind == "frame":
        return rows_frame(values, rows()).set_axis(["a", "b", "c"], axis=1)
    return with_rows(sparse.csr_matrix(values) if kind == "csr" else values, rows())


def pooled_by_hand(values, groups, n_groups, pooling):
    out = np.zeros((n_groups, values.shape[1]), dtype=values.dtype)
    for group in range(n_groups):
        members = [values[i] for i in range(len(values)) if groups[i] == group]
        for column in range(values.shape[1]):
            cells = [row[column] for row in members]
            if cells:
                out[group, column] = {
                    "max": max(cells),
                    "mean": sum(cells) / len(cells),
                    "sum": sum(cells),
                    "count": sum(cell != 0 for cell in cells),
                }[pooling]
    return out


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["dense", "csr", "frame"])
def test_one_row_per_text(pooling, kind):
    pooled = ConceptPooler(pooling).fit_transform(carrying(kind))
    expected = pooled_by_hand(VALUES, TEXT_OF_ROW, len(TEXTS), pooling)
    if kind == "csr":
        assert isinstance(pooled, sparse.csr_matrix)
        assert pooled.has_canonical_format
        assert (pooled.data != 0).all()
        pooled = pooled.toarray()
    assert type(pooled) is np.ndarray
    np.testing.assert_allclose(pooled, expected)


def test_poolings_counted_by_hand():
    codes = np.array([[1.0, 0.0], [3.0, -2.0], [0.0, -1.0]])
    pooled = {p: ConceptPooler(p).fit_transform(codes, groups=[0, 0, 2]) for p in POOLINGS}
    assert pooled["max"].tolist() == [[3, 0], [0, 0], [0, -1]]
    assert pooled["mean"].tolist() == [[2, -1], [0, 0], [0, -1]]
    assert pooled["sum"].tolist() == [[4, -2], [0, 0], [0, -1]]
    assert pooled["count"].tolist() == [[2, 1], [0, 0], [0, 1]]


@settings(max_examples=60, deadline=None, database=None)
@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    pooling=st.sampled_from(POOLINGS),
)
def test_pooling_is_what_loops_give(groups, seed, pooling):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, size=(len(groups), 4)) * (rng.random((len(groups), 4)) < 0.5)
    values = values.astype(np.float64)
    expected = pooled_by_hand(values, groups, max(groups) + 1, pooling)
    stored = sparse.csr_matrix(np.where(values == 0, 9, values))
    stored.data[stored.data == 9] = 0
    unsorted = sparse.csr_matrix(values)[:, ::-1].tocsc()[:, ::-1]
    doubled = sparse.csr_matrix(
        (np.repeat(stored.data / 2, 2), np.repeat(stored.indices, 2), stored.indptr * 2),
        shape=stored.shape,
    )
    for X in (values, sparse.csr_matrix(values), stored, unsorted, doubled):
        before = X.copy()
        pooled = ConceptPooler(pooling).fit_transform(X, groups=groups)
        assert sparse.issparse(pooled) == sparse.issparse(X)
        pooled = pooled.toarray() if sparse.issparse(pooled) else pooled
        np.testing.assert_allclose(pooled, expected, atol=1e-12)
        if sparse.issparse(X):
            np.testing.assert_array_equal(X.data, before.data)
            np.testing.assert_array_equal(X.indices, before.indices)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(pooling, kind, dtype):
    pooled = ConceptPooler(pooling).fit_transform(carrying(kind, VALUES.astype(dtype)))
    assert pooled.dtype == dtype


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sparse_indices_are_int32(pooling):
    X = sparse.csr_matrix(VALUES)
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    pooled = ConceptPooler(pooling).fit_transform(X, groups=TEXT_OF_ROW)
    assert pooled.indices.dtype == pooled.indptr.dtype == np.int32


@pytest.mark.skipif("sparse_interface" not in get_config(), reason="older scikit-learn")
def test_the_kind_of_sparse_output_follows_the_configuration():
    with config_context(sparse_interface="sparray"):
        pooled = ConceptPooler().fit_transform(carrying("csr"))
    assert isinstance(pooled, sparse.csr_array)


def test_codes_without_entries():
    pooled = ConceptPooler().fit_transform(sparse.csr_matrix((3, 2)), groups=[0, 0, 1])
    assert pooled.shape == (2, 2)
    assert pooled.nnz == 0


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_without_any_token_give_zero_rows(kind, pooling):
    nothing = np.zeros((0, 3))
    X = with_rows(sparse.csr_matrix(nothing) if kind == "csr" else nothing, Rows([], [], [], TEXTS))
    pooled = ConceptPooler(pooling).fit(carrying(kind)).transform(X)
    assert pooled.shape == (4, 3)
    assert abs(pooled).sum() == 0
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        ConceptPooler().fit(nothing, groups=np.array([], dtype=int))


def test_a_slice_of_the_rows_keeps_the_number_of_texts():
    X = carrying("csr")
    pooled = ConceptPooler("sum").fit(X).transform(X[4:])
    np.testing.assert_array_equal(pooled.toarray(), [[0, 0, 0], [0, 0, 0], [0, 1.5, -3], [0, 0, 4]])


def test_groups_win_over_the_rows_of_the_input():
    pooled = ConceptPooler("sum").fit_transform(carrying("dense"), groups=[0] * 6)
    np.testing.assert_array_equal(pooled, VALUES.sum(axis=0, keepdims=True))


def test_groups_can_be_a_series_and_reach_a_pipeline():
    groups = pd.Series(TEXT_OF_ROW)
    pipe = Pipeline([("pool", ConceptPooler("sum"))])
    pooled = pipe.fit_transform(VALUES, pool__groups=groups)
    np.testing.assert_array_equal(pooled, pooled_by_hand(VALUES, TEXT_OF_ROW, 4, "sum"))


def test_groups_reach_transform_through_metadata_routing():
    with config_context(enable_metadata_routing=True):
        pooler = ConceptPooler().set_fit_request(groups=True).set_transform_request(groups=True)
        pipe = Pipeline([("pool", pooler)]).fit(VALUES, groups=TEXT_OF_ROW)
        pooled = pipe.transform(VALUES, groups=TEXT_OF_ROW)
    np.testing.assert_array_equal(pooled, pooled_by_hand(VALUES, TEXT_OF_ROW, 4, "max"))


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_a_classifier_with_one_label_per_text_can_follow(kind):
    y = [0, 0, 1, 1]
    pipe = Pipeline(
        [("concepts", TopKInputs(k=1)), ("pool", ConceptPooler()), ("lr", LogisticRegression())]
    ).fit(carrying(kind), y)
    assert pipe.predict(carrying(kind)).shape == (4,)
    assert list(pipe[:2].get_feature_names_out()) == ["0: bb", "1: ee", "2: ff"]


def test_feature_names():
    pooler = ConceptPooler().fit(carrying("dense"))
    assert list(pooler.get_feature_names_out()) == ["x0", "x1", "x2"]
    assert list(pooler.get_feature_names_out(["p", "q", "r"])) == ["p", "q", "r"]
    framed = ConceptPooler().fit(carrying("frame"))
    assert list(framed.get_feature_names_out()) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["dense", "frame"])
def test_a_pandas_frame_has_one_line_per_text(kind):
    pooler = ConceptPooler().set_output(transform="pandas")
    frame = pooler.fit_transform(carrying(kind))
    assert frame.index.name == "text"
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame.columns) == (["a", "b", "c"] if kind == "frame" else ["x0", "x1", "x2"])
    np.testing.assert_array_equal(frame, pooled_by_hand(VALUES, TEXT_OF_ROW, 4, "max"))


def test_a_polars_frame_has_one_line_per_text():
    pytest.importorskip("polars")
    frame = ConceptPooler().set_output(transform="polars").fit_transform(carrying("dense"))
    assert frame.columns == ["x0", "x1", "x2"]
    np.testing.assert_array_equal(frame, pooled_by_hand(VALUES, TEXT_OF_ROW, 4, "max"))


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_sparse_codes_in_a_frame_are_refused(container):
    with pytest.raises(ValueError) as error:
        ConceptPooler().set_output(transform=container).fit_transform(carrying("csr"))
    assert str(error.value) == (
        f"ConceptPooler got sparse codes but set_output asks for {container}. Set "
        "sparse_output=False on the SAE, or set_output(transform='default') on ConceptPooler."
    )


def test_missing_rows_name_the_ways_out():
    for call in (ConceptPooler().fit, ConceptPooler().fit_transform):
        with pytest.raises(ValueError, match=r"^ConceptPooler needs to know the text of each row"):
            call(VALUES)
    with pytest.raises(ValueError, match=r"or pass groups= \(the text's index of each row\)\.$"):
        ConceptPooler().fit(carrying("dense")).transform(VALUES)


def test_other_poolings_are_refused():
    with pytest.raises(ValueError, match=r"^The 'pooling' parameter of ConceptPooler must be a st"):
        ConceptPooler("median").fit(carrying("dense"))


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_nan_and_a_wrong_width_are_refused(kind):
    broken = VALUES.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        ConceptPooler().fit(carrying(kind, broken))
    with pytest.raises(ValueError, match="X has 2 features, but ConceptPooler is expecting 3"):
        ConceptPooler().fit(carrying(kind)).transform(carrying(kind)[:, :2])


def test_there_is_no_way_back():
    assert not hasattr(ConceptPooler(), "inverse_transform")
