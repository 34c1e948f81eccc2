import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, StandardScaler
from sklearn.utils import get_tags

from sksae.activations import ConceptPooler, KeepRows, Rows
from sksae.activations._rows import RowsArray, RowsCSRMatrix, rows_frame, rows_of, with_rows

RNG = np.random.default_rng(0)
VALUES = RNG.random((8, 3))
TEXTS = ["a b c d", "e f g h"]


def rows():
    start = [0, 2, 4, 6] * 2
    return Rows([0] * 4 + [1] * 4, start, np.add(start, 1), TEXTS)


def one_row_per_text():
    return Rows(np.arange(8), [0] * 8, [1] * 8, list("abcdefgh"))


def carrying(kind):
    if kind == "frame":
        return rows_frame(VALUES, rows()).set_axis(["a", "b", "c"], axis=1)
    return with_rows(sparse.csr_matrix(VALUES) if kind == "csr" else VALUES, rows())


class HalfOfTheRows(BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[::2]


class Witness(BaseEstimator):
    """Notes what fit was given."""

    def fit(self, X, y=None, **params):
        self.seen_, self.y_, self.params_ = type(X), y, params
        return self

    def transform(self, X):
        return X


@pytest.mark.parametrize("kind", ["dense", "frame"])
@pytest.mark.parametrize("inner", [StandardScaler(), PCA(2), make_pipeline(StandardScaler())])
def test_the_values_are_the_transformer_s_and_the_rows_the_input_s(kind, inner):
    X = carrying(kind)
    out = KeepRows(inner).fit_transform(X)
    assert isinstance(out, RowsArray)
    assert out.rows == rows()
    np.testing.assert_allclose(out, inner.fit_transform(VALUES))
    np.testing.assert_allclose(KeepRows(inner).fit(X).transform(X), out)
    assert KeepRows(inner).fit(X).transform(X[2:4]).rows == rows()[2:4]


def test_sparse_in_sparse_out():
    X = carrying("csr")
    out = KeepRows(MaxAbsScaler()).fit_transform(X)
    assert isinstance(out, RowsCSRMatrix)
    assert out.rows == rows()
    np.testing.assert_allclose(out.toarray(), VALUES / VALUES.max(axis=0))
    assert isinstance(KeepRows(TruncatedSVD(2)).fit_transform(X), RowsArray)


def test_without_rows_it_acts_like_the_transformer():
    out = KeepRows(StandardScaler()).fit_transform(VALUES)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, StandardScaler().fit_transform(VALUES))
    assert rows_of(KeepRows(MaxAbsScaler()).fit_transform(sparse.csr_matrix(VALUES))) is None
    assert KeepRows(SelectKBest(k=1)).fit_transform(VALUES, [0, 1] * 4).shape == (8, 1)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        KeepRows(SelectKBest(k=1)).fit(VALUES, [0, 1])


def test_the_wrapped_transformer_is_cloned_and_sees_plain_containers():
    inner = Witness()
    step = KeepRows(inner).fit(carrying("dense"), sample_weight=[1] * 8)
    assert step.transformer is inner
    assert not hasattr(inner, "seen_")
    assert step.transformer_.seen_ is np.ndarray
    assert step.transformer_.params_ == {"sample_weight": [1] * 8}
    assert KeepRows(inner).fit(carrying("csr")).transformer_.seen_ is sparse.csr_matrix
    assert KeepRows(inner).fit_transform(carrying("csr")).rows == rows()


def test_inverse_transform_keeps_the_rows():
    X = carrying("dense")
    step = KeepRows(StandardScaler()).fit(X)
    back = step.inverse_transform(step.transform(X))
    assert back.rows == rows()
    np.testing.assert_allclose(back, VALUES)
    assert type(step.inverse_transform(VALUES)) is np.ndarray


def test_methods_are_those_of_the_transformer():
    assert hasattr(KeepRows(IncrementalPCA()), "partial_fit")
    for method in ("partial_fit", "inverse_transform"):
        assert not hasattr(KeepRows(Normalizer()), method)
    assert not hasattr(KeepRows(Witness()), "get_feature_names_out")


def test_partial_fit_continues():
    X = carrying("dense")
    step = KeepRows(StandardScaler()).partial_fit(X[:4])
    first = step.transformer_
    step.partial_fit(X[4:], [0, 1])
    assert step.transformer_ is first
    np.testing.assert_allclose(step.transformer_.mean_, VALUES.mean(axis=0))


def test_names_and_widths_are_those_of_the_transformer():
    step = KeepRows(PCA(2))
    assert not hasattr(step, "n_features_in_")
    step.fit(carrying("frame"))
    assert step.n_features_in_ == 3
    assert list(step.feature_names_in_) == ["a", "b", "c"]
    assert list(step.get_feature_names_out()) == ["pca0", "pca1"]
    scaler = KeepRows(StandardScaler()).fit(carrying("dense"))
    assert list(scaler.get_feature_names_out(["p", "q", "r"])) == ["p", "q", "r"]
    assert not hasattr(scaler, "feature_names_in_")


def test_nested_parameters():
    step = KeepRows(StandardScaler())
    assert step.get_params()["transformer__with_mean"] is True
    assert step.set_params(transformer__with_mean=False).transformer.with_mean is False
    pipe = Pipeline([("scale", step)]).set_params(scale__transformer=MaxAbsScaler())
    assert isinstance(pipe["scale"].transformer, MaxAbsScaler)


def test_tags_are_those_of_the_transformer():
    assert get_tags(KeepRows(MaxAbsScaler())).input_tags.sparse
    assert not get_tags(KeepRows(PCA(svd_solver="full"))).input_tags.sparse
    assert get_tags(KeepRows(LinearDiscriminantAnalysis())).target_tags.required
    assert get_tags(KeepRows(MaxAbsScaler())).input_tags.allow_nan
    assert not get_tags(KeepRows(Normalizer())).requires_fit


def test_y_with_one_entry_per_text_is_ignored():
    assert KeepRows(Witness()).fit(carrying("dense"), [0, 1]).transformer_.y_ is None
    pipe = Pipeline([("scale", KeepRows(StandardScaler())), ("pool", ConceptPooler())])
    assert pipe.fit_transform(carrying("dense"), [0, 1]).shape == (2, 3)


def test_y_with_one_entry_per_row_is_passed_on():
    y = [0, 1] * 4
    assert KeepRows(Witness()).fit(carrying("dense"), y).transformer_.y_ == y
    out = KeepRows(LinearDiscriminantAnalysis()).fit_transform(carrying("dense"), y)
    assert out.rows == rows()
    X = with_rows(VALUES, one_row_per_text())
    assert KeepRows(Witness()).fit(X, y).transformer_.y_ == y


def test_y_is_ignored_where_rows_and_texts_are_equal_in_number_by_chance():
    by_chance = Rows([0] * 7 + [7], [0] * 8, [1] * 8, list("abcdefgh"))
    step = KeepRows(Witness()).fit(with_rows(VALUES, by_chance), [0, 1] * 4)
    assert step.transformer_.y_ is None


def test_a_transformer_that_needs_y_asks_for_one_entry_per_row():
    with pytest.raises(ValueError) as error:
        KeepRows(LinearDiscriminantAnalysis()).fit(carrying("dense"), [0, 1])
    assert str(error.value) == (
        "LinearDiscriminantAnalysis in KeepRows needs y with one entry per row. Got 2 entries "
        "for 8 rows of 2 texts. Put it behind a ConceptPooler, where there is one row per text."
    )


def test_a_transformer_that_changes_the_number_of_rows_is_refused():
    with pytest.raises(ValueError) as error:
        KeepRows(HalfOfTheRows()).fit_transform(carrying("dense"))
    assert str(error.value) == (
        "HalfOfTheRows in KeepRows must give one row for each row of its input: expected 8, got "
        "4. Use it without KeepRows; the texts of its output are then unknown."
    )


@pytest.mark.parametrize("wrong", [3, "passthrough", None])
def test_what_is_no_transformer_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^The 'transformer' parameter of KeepRows must be an ob"):
        KeepRows(wrong).fit(carrying("dense"))


@pytest.mark.parametrize("kind", ["dense", "frame"])
def test_pandas_frames_carry_the_rows_in_their_index(kind):
    step = KeepRows(PCA(2)).set_output(transform="pandas")
    frame = step.fit_transform(carrying(kind))
    assert list(frame.columns) == ["pca0", "pca1"]
    assert rows_of(frame) == rows()
    assert rows_of(step.transform(carrying(kind)[4:])) == rows()[4:]


def test_pandas_frames_without_rows_keep_their_index():
    X = pd.DataFrame(VALUES, index=list("abcdefgh"))
    X.columns = ["p", "q", "r"]
    frame = KeepRows(StandardScaler()).set_output(transform="pandas").fit_transform(X)
    assert list(frame.index) == list("abcdefgh")
    assert list(frame.columns) == ["p", "q", "r"]


def test_a_wrapped_transformer_that_gives_frames():
    inner = PCA(2).set_output(transform="pandas")
    frame = KeepRows(inner).fit_transform(carrying("dense"))
    assert rows_of(frame) == rows()
    assert list(frame.columns) == ["pca0", "pca1"]


def test_polars_frames_have_no_rows():
    pytest.importorskip("polars")
    frame = KeepRows(PCA(2)).set_output(transform="polars").fit_transform(carrying("dense"))
    assert frame.columns == ["pca0", "pca1"]
    inner = PCA(2).set_output(transform="polars")
    assert KeepRows(inner).fit_transform(carrying("dense")).columns == ["pca0", "pca1"]


def test_sparse_output_in_a_frame_is_refused():
    step = KeepRows(MaxAbsScaler()).set_output(transform="pandas")
    with pytest.raises(ValueError, match=r"^KeepRows got sparse codes but set_output asks for pan"):
        step.fit_transform(carrying("csr"))
