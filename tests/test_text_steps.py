"""What every step of a pipeline from texts must do, whatever it computes."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.utils import estimator_html_repr, get_tags
from sklearn.utils.validation import check_is_fitted

from sksae.activations import ConceptPooler, KeepRows, Rows
from sksae.activations._rows import rows_frame, rows_of, with_rows
from sksae.interpretation import TermLabels, TopKInputs

TEXTS = ["red sea", "", "old grey ship"]
SPANS = [(0, 0, 3), (0, 4, 7), (2, 0, 3), (2, 4, 8), (2, 9, 13)]
VALUES = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.5], [0.0, 4.0], [1.0, 1.0]])


def activations(kind="dense", dtype=np.float64):
    """Rows of three texts, the second of which is empty."""
    values, rows = VALUES.astype(dtype), Rows(*zip(*SPANS, strict=True), TEXTS)
    if kind == "frame":
        return rows_frame(values, rows).set_axis(["a", "b"], axis=1)
    return with_rows(sparse.csr_matrix(values) if kind == "csr" else values, rows)


def dense(X):
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


# One entry per step: how to make it, its input, and its constructor's repr.
STEPS = {
    "TopKInputs": (lambda: TopKInputs(k=2), activations, "TopKInputs(k=2)"),
    "TopKInputs, CSR": (
        lambda: TopKInputs(concepts_indices=[1]),
        lambda: activations("csr"),
        "TopKInputs(concepts_indices=[1])",
    ),
    "TermLabels": (lambda: TermLabels(n_terms=2), activations, "TermLabels(n_terms=2)"),
    "TermLabels, CSR": (
        lambda: TermLabels(method="ctfidf"),
        lambda: activations("csr"),
        "TermLabels(method='ctfidf')",
    ),
    "ConceptPooler": (lambda: ConceptPooler("mean"), activations, "ConceptPooler(pooling='mean')"),
    "ConceptPooler, CSR": (ConceptPooler, lambda: activations("csr"), "ConceptPooler()"),
    "KeepRows": (
        lambda: KeepRows(StandardScaler()),
        activations,
        "KeepRows(transformer=StandardScaler())",
    ),
    "KeepRows, CSR": (
        lambda: KeepRows(MaxAbsScaler()),
        lambda: activations("csr"),
        "KeepRows(transformer=MaxAbsScaler())",
    ),
}


def takes_texts(name):
    return isinstance(STEPS[name][1](), list)


@pytest.fixture(params=list(STEPS))
def case(request):
    make, make_input, text = STEPS[request.param]
    return make(), make_input(), text


@pytest.fixture
def step(case):
    return case[0]


@pytest.fixture
def X(case):
    return case[1]


@pytest.fixture(params=[name for name in STEPS if not takes_texts(name)])
def matrix_case(request):
    """A step that takes a matrix, and its input."""
    make, make_input, _ = STEPS[request.param]
    return make(), make_input()


def test_constructor_only_stores(step):
    assert not [name for name in vars(step) if name.endswith("_")]
    assert {k: v for k, v in vars(step).items() if not k.startswith("_")} == step.get_params(
        deep=False
    )


def test_clone_has_the_same_parameters_and_no_state(step, X):
    step.fit(X)
    twin = clone(step)
    assert repr(twin.get_params()) == repr(step.get_params())
    with pytest.raises(NotFittedError):
        check_is_fitted(twin)


def test_get_and_set_params_are_inverse(step):
    before = step.get_params(deep=False)
    assert step.set_params(**before) is step
    assert step.get_params(deep=False) == before
    with pytest.raises(ValueError, match="Invalid parameter 'absent' for estimator"):
        step.set_params(absent=1)


def test_repr(case, X):
    step, _, text = case
    assert repr(step) == text
    assert repr(step.fit(X)) == text
    assert type(step).__name__ in estimator_html_repr(step)


def test_fit_returns_self_and_ignores_y(step, X):
    assert step.fit(X) is step
    first = dense(step.transform(X))
    for y in ([0, 1, 1], np.arange(99)):
        np.testing.assert_array_equal(dense(step.fit(X, y).transform(X)), first)
        np.testing.assert_array_equal(dense(step.fit_transform(X, y)), first)


def test_before_fit_it_says_so(step, X):
    for method in ("transform", "inverse_transform"):
        if hasattr(step, method):
            with pytest.raises(NotFittedError, match=f"This {type(step).__name__} instance is not"):
                getattr(step, method)(X)
    with pytest.raises(NotFittedError):
        step.get_feature_names_out()


@pytest.mark.parametrize(
    "travel",
    [
        lambda step, folder: pickle.loads(pickle.dumps(step)),
        lambda step, folder: copy.deepcopy(step),
        lambda step, folder: joblib.load(joblib.dump(step, folder / "step")[0]),
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_a_fitted_step_travels(step, X, travel, tmp_path):
    before = dense(step.fit(X).transform(X))
    twin = travel(step, tmp_path)
    np.testing.assert_array_equal(dense(twin.transform(X)), before)
    assert list(twin.get_feature_names_out()) == list(step.get_feature_names_out())


def test_parameters_and_inputs_are_left_alone(step, X):
    parameters, values, rows = repr(step.get_params()), dense(X).copy(), rows_of(X)
    step.fit(X)
    step.transform(X)
    step.fit_transform(X)
    assert repr(step.get_params()) == parameters
    np.testing.assert_array_equal(dense(X), values)
    assert rows_of(X) == rows


def test_fit_transform_is_fit_then_transform(step, X):
    together = step.fit_transform(X)
    apart = clone(step).fit(X).transform(X)
    np.testing.assert_allclose(dense(together), dense(apart))
    assert rows_of(together) == rows_of(apart)


def test_there_is_one_name_per_column(step, X):
    out = step.fit_transform(X)
    names = step.get_feature_names_out()
    assert names.dtype == object
    assert len(names) == len(set(names)) == out.shape[1]


def test_pandas_output(step, X):
    values = step.fit_transform(X)
    step.set_output(transform="pandas")
    if sparse.issparse(values):
        with pytest.raises(ValueError, match="for pandas. Set sparse_output=False on the SAE"):
            step.transform(X)
        return
    for frame in (step.fit_transform(X), step.transform(X)):
        assert list(frame.columns) == list(step.get_feature_names_out())
        np.testing.assert_allclose(frame, values)
        assert rows_of(frame) == rows_of(values)


def test_polars_output(step, X):
    pytest.importorskip("polars")
    values = step.fit_transform(X)
    step.set_output(transform="polars")
    if sparse.issparse(values):
        with pytest.raises(ValueError, match="for polars. Set sparse_output=False on the SAE"):
            step.transform(X)
        return
    frame = step.fit_transform(X)
    assert frame.columns == list(step.get_feature_names_out())
    np.testing.assert_allclose(frame, values)


def test_frames_with_rows_in_their_index_are_taken(matrix_case):
    step, _ = matrix_case
    values = step.fit_transform(activations())
    X = activations("frame")
    frame = clone(step).set_output(transform="pandas").fit_transform(X)
    np.testing.assert_allclose(frame, dense(values))
    assert list(X.columns) == ["a", "b"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_sparsity_are_kept(matrix_case, dtype):
    step, X = matrix_case
    out = step.fit_transform(X.astype(dtype))
    assert out.dtype == dtype
    assert sparse.issparse(out) == sparse.issparse(X)
    assert step.n_features_in_ == X.shape[1]


def test_read_only_input(matrix_case):
    step, X = matrix_case
    buffer = X.data if sparse.issparse(X) else X
    buffer.flags.writeable = False
    assert step.fit_transform(X).shape[1] == 2


def test_tags_tell_which_input_is_taken(matrix_case):
    step, X = matrix_case
    assert get_tags(step).input_tags.sparse or not sparse.issparse(X)
    assert get_tags(step).requires_fit
