"""The private names of scikit-learn that sksae relies on, in one place."""

from sklearn import get_config
from sklearn.base import _fit_context as fit_context
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    HasMethods,
    Hidden,
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils._set_output import _get_output_config

__all__ = [
    "HasMethods",
    "Hidden",
    "Interval",
    "InvalidParameterError",
    "Options",
    "StrOptions",
    "fit_context",
    "output_container",
    "safe_indexing",
    "validate_parameter_constraints",
    "wants_sparse_arrays",
]


def output_container(estimator):
    """Name the container that ``set_output`` asks of ``estimator``'s transform.

    Returns
    -------
    {"default", "pandas", "polars"}
    """
    return _get_output_config("transform", estimator)["dense"]


def wants_sparse_arrays():
    """Tell whether the configuration asks for ``csr_array`` instead of ``csr_matrix``."""
    return get_config().get("sparse_interface", "spmatrix") == "sparray"
