"""What fit, transform and score take, and what they refuse, for every variant."""

import copy
import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sksae import TopKSAE, fit_many
from sksae.activations import Rows
from sksae.activations._rows import RowsArray, RowsCSRMatrix, rows_frame, with_rows
from sksae.estimators import _base, _fit_many, _input
from sksae.losses import SAELossClasses
from sksae.training._data import RowBatches


def dense(codes):
    return codes.toarray() if sparse.issparse(codes) else np.asarray(codes)


def raises(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        lambda X: pl.DataFrame(X, schema=[f"f{i}" for i in range(X.shape[1])]),
        sparse.csr_matrix,
        sparse.csr_array,
        sparse.coo_matrix,
        torch.from_numpy,
        lambda X: torch.from_numpy(X).requires_grad_(),
        np.asfortranarray,
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: X[::-1].copy()[::-1],
        lambda X: X.tolist(),
    ],
    ids="pandas polars csr csr_array coo torch torch_grad fortran strided reversed list".split(),
)
def test_every_container_gives_the_codes_of_the_array(make, X, convert):
    reference = make().fit(X)
    other = make().fit(convert(X))
    exact = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(other.components_, reference.components_, **exact)
    np.testing.assert_allclose(
        dense(other.transform(convert(X))), dense(reference.transform(X)), rtol=1e-3, atol=1e-4
    )
    assert other.score(convert(X)) == pytest.approx(reference.score(X), abs=1e-4)


def test_read_only_and_memory_mapped(make, X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    locked = X.copy()
    locked.flags.writeable = False
    expected = make().fit(X).components_
    np.testing.assert_array_equal(make().fit(mapped).components_, expected)
    np.testing.assert_array_equal(make().fit(locked).components_, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_float_dtype(make, X, dtype):
    tensor = torch.from_numpy(X).to(dtype)
    sae = make().fit(tensor)
    codes = sae.transform(tensor)
    expected = np.float64 if dtype is torch.float64 else np.float32
    assert codes.dtype == expected
    assert isinstance(sae.score(tensor), float)


@pytest.fixture
def kept(monkeypatch):
    """Treat tensors as those that are on a CUDA device; give a list of the rows so read."""
    seen = []

    def stays(X):
        return isinstance(X, torch.Tensor) and X.is_floating_point() and X.ndim == 2

    def batches(X, *others):
        seen.append(X)
        return RowBatches(X, *others)

    for module in (_input, _fit_many):
        monkeypatch.setattr(module, "stays_on_device", stays)
    monkeypatch.setattr(_base, "RowBatches", batches)
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("params", [{}, {"validation_fraction": 0.2, "sparse_output": False}])
def test_rows_on_a_device_are_read_where_they_are(make, X, dtype, params, kept):
    tensor = torch.from_numpy(X).to(dtype).requires_grad_()
    array = tensor.detach().to(torch.promote_types(dtype, torch.float32)).numpy()
    ours, theirs = make(**params).fit(tensor), make(**params).fit(array)
    np.testing.assert_array_equal(ours.components_, theirs.components_)
    codes, expected = ours.transform(tensor), theirs.transform(array)
    assert codes.dtype == expected.dtype == array.dtype
    np.testing.assert_array_equal(dense(codes), dense(expected))
    assert ours.score(tensor) == theirs.score(array)
    assert ours.n_features_in_ == X.shape[1]
    of_tensors = [isinstance(rows, torch.Tensor) for rows in kept]
    n_each = 2 if params else 1
    assert of_tensors == [True] * n_each + [False] * n_each + [True, False, True, False]
    assert all(rows.data_ptr() == tensor.data_ptr() for rows in kept[:n_each])


def test_rows_on_a_device_in_other_ways(X, kept):
    tensor = torch.from_numpy(X)
    with torch.inference_mode():
        inferred = tensor * 1
    strided = tensor.repeat_interleave(2, dim=1)[:, ::2]
    sae = TopKSAE(16, top_k=3, nb_epochs=2, random_state=0)
    expected = clone(sae).fit(X)
    for rows in (inferred, strided):
        assert np.array_equal(clone(sae).fit(rows).components_, expected.components_)
    held_out = clone(sae).set_params(top_k=2, validation_fraction=0.3)
    one, two, three = fit_many([clone(sae), held_out, clone(sae).set_params(top_k=2)], tensor)
    assert np.array_equal(one.components_, expected.components_) and three.l0_ <= 2
    assert np.array_equal(two.components_, clone(held_out).fit(X).components_)
    again = clone(expected).partial_fit(tensor).partial_fit(tensor[:1])
    assert again.n_steps_ > 1
    assert dense(expected.transform(tensor[:1])).shape == (1, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x[:, 1:], "features, but TopKSAE is expecting"),
        (lambda x: x[:0], "Found array with 0 sample(s)"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), "Input X contains NaN."),
        (lambda x: x.index_fill(1, torch.tensor([3]), torch.inf), "Input X contains infinity"),
        (lambda x: x[None], "expects X of shape (n_samples, n_features)"),
    ],
)
def test_bad_rows_on_a_device(X, kept, change, message):
    tensor = torch.from_numpy(X)
    sae = TopKSAE(16, top_k=3, nb_epochs=1).fit(tensor)
    with raises(message):
        sae.transform(change(tensor))
    with raises("minimum of 2 is required"):
        clone(sae).fit(tensor[:1])


def test_large_rows_in_half_precision_are_finite(kept):
    """Their sum in their own precision is not."""
    X = torch.full((64, 8), 6e4, dtype=torch.float16)
    X[::2] = 0
    assert TopKSAE(4, top_k=2, nb_epochs=1).fit(X).n_steps_ == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_in_is_precision_out(make, X, dtype):
    sae = make().fit(X.astype(dtype))
    assert sae.components_.dtype == dtype
    for other in (np.float32, np.float64):
        codes = sae.transform(X.astype(other))
        assert codes.dtype == other
        assert sae.inverse_transform(codes).dtype == other


def test_float64_is_computed_in_float64(make, X):
    sae = make().fit(X.astype(np.float64))
    x = torch.from_numpy(X.astype(np.float64))
    expected = sae.encode(x).detach().numpy()
    assert expected.dtype == np.float64
    np.testing.assert_allclose(dense(sae.transform(x)), expected, rtol=1e-12)


def test_input_is_never_written_to(make, X):
    before = X.copy()
    make(clip_grad=1.0).fit(X).transform(X)
    np.testing.assert_array_equal(X, before)


def test_constant_feature_and_constant_data(make):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 5)).astype(np.float32)
    X[:, 2] = 7
    assert np.isfinite(make().fit(X).score(X))
    constant = np.full((50, 4), 3.0, dtype=np.float32)
    sae = make().fit(constant)
    assert sae.score(constant) == 1.0
    assert sae.score(constant + 1) == 0.0


def test_one_concept(make, X):
    params = {"top_k": 1} if "top_k" in make().get_params() else {}
    sae = make(nb_concepts=1, **params).fit(X)
    assert sae.transform(X).shape == (len(X), 1)


def test_one_row_is_refused_in_fit_and_fine_in_transform(make, X):
    with raises("Found array with 1 sample(s)"):
        make().fit(X[:1])
    assert make().fit(X).transform(X[:1]).shape == (1, 24)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_entries(make, X, bad):
    spoilt = X.copy()
    spoilt[3, 4] = bad
    message = "Input X contains NaN" if np.isnan(bad) else "Input X contains infinity"
    with raises(message):
        make().fit(spoilt)
    with raises(message):
        make().fit(X).transform(spoilt)


def test_empty_and_wrong_width(make, X):
    name = type(make()).__name__
    with raises("Found array with 0 sample(s) (shape=(0, 12)) while a minimum of 2 is required"):
        make().fit(X[:0])
    with raises(f"X has 5 features, but {name} is expecting 12 features as input."):
        make().fit(X).transform(X[:, :5])
    with raises(f"Z has 5 columns, but {name} has 24 concepts. Pass codes as transform gives"):
        make().fit(X).inverse_transform(np.zeros((2, 5)))


def test_three_dimensions_get_advice(make, X):
    name = type(make()).__name__
    with raises(
        f"{name} expects X of shape (n_samples, n_features), got shape (5, 100, 12). Flatten it "
        "to one row per token: X.reshape(-1, X.shape[-1])."
    ):
        make().fit(torch.from_numpy(X).reshape(5, 100, 12))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nb_concepts": 0}, "must be an int in the range [1, inf). Got 0 instead."),
        ({"nb_epochs": 1.5}, "must be an int in the range [1, inf). Got 1.5 instead."),
        ({"lr": -1.0}, "must be a str among {'auto'} or a float in the range (0.0, inf)."),
        ({"use_amp": "fp8"}, "Got 'fp8' instead."),
        ({"validation_fraction": 1.0}, "must be None or a float in the range (0.0, 1.0)."),
        ({"backend": "mps"}, "Got 'mps' instead."),
        ({"callbacks": "disable"}, "must be None or an instance of 'list'"),
    ],
)
def test_parameters_are_named_when_refused(make, X, params, message):
    (parameter,) = params
    with raises(message) as caught:
        make(**params).fit(X)
    assert f"The '{parameter}' parameter of {type(make()).__name__} must be" in str(caught.value)


def test_kernels_for_another_device_than_the_one_to_train_on(make, X):
    name = type(make()).__name__
    with raises(
        f"backend='cuda' of {name} computes on device='cuda' only. Got device='cpu', which is "
        "'cpu' here. Set backend='auto', which suits any device, or device='cuda'."
    ):
        make(backend="cuda", device="cpu").fit(X)


def test_unknown_criterion(make, X):
    with raises(
        f"The 'criterion' parameter of {type(make()).__name__} must be one of "
        "['dead_neurons_reanimation', 'mse'], a member of sksae.losses.SAELossClasses, a class to "
        "call without arguments, or a callable (x, x_hat, pre_codes, codes, dictionary). Got "
        "'huber' instead."
    ):
        make(criterion="huber").fit(X)


def test_criterion_must_return_a_number(make, X):
    with raises("The criterion must return a tensor with one number, got (64, 12)."):
        make(criterion=lambda x, x_hat, pre, codes, d: (x - x_hat) ** 2).fit(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device(make, X):
    name = type(make()).__name__
    with raises(
        f"device='cuda' was asked of {name}, but this machine has 0 CUDA devices. Use "
        "device='auto' or device='cpu'."
    ):
        make(device="cuda").fit(X)


def test_a_kind_of_device_that_does_not_train(make, X):
    with raises(
        f"The 'device' parameter of {type(make()).__name__} must be 'auto' or one of cpu, cuda, "
        "mps, with or without a number. Got 'meta' instead."
    ):
        make(device="meta").fit(X)


def test_unknown_device(make, X):
    with raises(
        f"The 'device' parameter of {type(make()).__name__} must be 'auto' or a torch device such "
        "as 'cpu' or 'cuda:0'. Got 'gpu0' instead."
    ):
        make(device="gpu0").fit(X)


def test_y_is_ignored_whatever_its_length(make, X):
    expected = make().fit(X).components_
    np.testing.assert_array_equal(make().fit(X, y=["a", "b"]).components_, expected)
    assert make().fit_transform(X, ["a"]).shape == (len(X), 24)


# -- rows and frames --------------------------------------------------------------------


@pytest.fixture
def with_text(X):
    texts = ["ab cd"] * (len(X) // 2)
    text = np.repeat(np.arange(len(texts)), 2)
    start = np.tile([0, 3], len(texts))
    return with_rows(X, Rows(text, start, start + 2, texts))


def test_rows_travel_to_codes_and_back(make, with_text):
    sae = make().fit(with_text)
    codes = sae.transform(with_text)
    assert isinstance(codes, RowsCSRMatrix)
    assert codes.rows == with_text.rows
    back = sae.inverse_transform(codes[5:9])
    assert isinstance(back, RowsArray)
    assert back.rows == with_text.rows[5:9]
    plain = make(sparse_output=False).fit(with_text).transform(with_text)
    assert plain.rows == with_text.rows


def test_other_libraries_rows_are_not_read(make, X):
    assert type(make().fit(X).transform(sparse.lil_matrix(X))) is sparse.csr_matrix


def test_pandas_output_carries_the_index(make, with_text):
    sae = make(sparse_output=False).set_output(transform="pandas").fit(with_text)
    frame = sae.transform(with_text)
    assert frame.index.names == ["text", "start", "end"]
    assert list(frame.columns) == list(sae.get_feature_names_out())
    again = make(sparse_output=False).fit(frame).transform(frame)
    assert again.rows == with_text.rows
    assert list(again.rows.units[:2]) == ["ab", "cd"]


def test_pandas_input_with_rows(make, with_text):
    frame = rows_frame(with_text, with_text.rows)
    frame.columns = [f"f{i}" for i in range(frame.shape[1])]
    codes = make().fit(frame).transform(frame)
    assert codes.rows == with_text.rows


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_frames_of_sparse_codes_are_refused(make, X, container):
    sae = make().set_output(transform=container).fit(X)
    with raises(
        f"{type(sae).__name__} gives sparse codes, which {container} output does not take. Set "
        "sparse_output=False, or set_output(transform='default')."
    ):
        sae.transform(X)
    assert len(make(sparse_output=False).set_output(transform=container).fit(X).transform(X)) == 500


def test_codes_have_int32_indices(make, X):
    codes = make().fit(X).transform(X)
    assert codes.indices.dtype == codes.indptr.dtype == np.int32
    assert codes.has_sorted_indices


def test_sparse_interface(make, X):
    import sklearn

    with sklearn.config_context(sparse_interface="sparray"):
        assert isinstance(make().fit(X).transform(X), sparse.csr_array)


def test_validation_rows_are_whole_texts(make, with_text):
    from sksae.estimators._input import split_rows

    train, valid = split_rows(len(with_text), with_text.rows.groups, 0.2, 0, "SAE")
    groups = with_text.rows.groups
    assert not set(groups[train]) & set(groups[valid])
    assert len(valid) == 100
    history = make(validation_fraction=0.2).fit(with_text).history_
    assert np.isfinite(history[:, "valid_loss"]).all()


def test_validation_leaves_rows_to_train_on(make, X):
    with raises("validation_fraction=0.9 leaves 0 of 3 rows to"):
        make(validation_fraction=0.9).fit(X[:3])


@pytest.mark.parametrize(
    "criterion",
    [
        "mse",
        "dead_neurons_reanimation",
        SAELossClasses.MSE,
        SAELossClasses.DeadNeuronsReanimation,
        SAELossClasses.MSE.value,
        lambda x, x_hat, pre_codes, codes, dictionary: (x - x_hat).abs().mean(),
    ],
)
def test_every_kind_of_criterion(make, X, criterion):
    assert np.isfinite(make(criterion=criterion).fit(X).score(X))


@pytest.mark.parametrize("name", ["components_", "history_", "backend_", "l0_", "module_"])
def test_what_a_fit_gives_is_asked_for_before(name, X):
    """The error names the attribute; hasattr, copies and pickles are as for any other object."""
    sae = TopKSAE(20, top_k=3, nb_epochs=1, random_state=0)
    with pytest.raises(NotFittedError, match=f"This TopKSAE has no '{name}' yet: call fit first"):
        getattr(sae, name)
    assert not hasattr(sae, name) and not hasattr(sae, "n_features_in_")
    with pytest.raises(AttributeError, match="'TopKSAE' object has no attribute 'componets'"):
        sae.componets  # noqa: B018
    for twin in (copy.copy(sae), copy.deepcopy(sae), pickle.loads(pickle.dumps(sae)), clone(sae)):
        assert not hasattr(twin, name)
        assert hasattr(twin.fit(X), name)
