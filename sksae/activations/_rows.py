"""Rows: which text, and which characters of it, each row of a matrix comes from.

Activations and codes have one row per token, word or sentence, so the link back to
the texts has to travel with them. Two kinds of containers carry it in ``.rows``: an
ndarray subclass and two CSR subclasses. They keep the link through operations that
map rows to rows in a known way (row indexing, column selection, copy, cast, scaling by
a number, pickle) and drop it in every other one: a lost link is an error that says so,
a stale link would be a wrong answer.
"""

from __future__ import annotations

import numbers
import re
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from .._sklearn import output_container, wants_sparse_arrays

FRAME_LEVELS = ("text", "start", "end")
_FRAME_TEXTS = "sksae_texts"
_SOLID = re.compile(r"\S*")


class Rows:
    """The text and character span behind every row of a matrix.

    Parameters
    ----------
    text : array-like of int, shape (n_rows,)
        Index of the row's text in ``texts``.
    start, end : array-like of int, shape (n_rows,)
        Character span of the row in its text.
    texts : sequence of str, or None
        The texts. None where only their numbering is known.
    specials : sequence of str or None, shape (n_rows,), optional
        The string of each row that is a special token, None for the others.

    Attributes
    ----------
    text, start, end : ndarray of int64, shape (n_rows,)
    texts : tuple of str, or None
    n_texts : int
        Number of texts, those without any row included.
    groups : ndarray of int64, shape (n_rows,)
        The same as ``text``: what ``GroupKFold`` takes to keep a text in one fold.
    units : ndarray of str objects, shape (n_rows,)
        ``texts[text][start:end].strip()`` of each row.

    Examples
    --------
    >>> rows = Rows([0, 0, 1], [0, 3, 0], [2, 9, 3], ["An apple", "Sea"])
    >>> list(rows.units)
    ['An', 'apple', 'Sea']
    >>> list(rows[[2, 0]].units), rows[[2, 0]].n_texts
    (['Sea', 'An'], 2)
    """

    __slots__ = ("text", "start", "end", "texts", "specials")

    def __init__(self, text, start, end, texts, specials=None):
        self.text = np.asarray(text, dtype=np.int64)
        self.start = np.asarray(start, dtype=np.int64)
        self.end = np.asarray(end, dtype=np.int64)
        self.texts = texts if texts is None or isinstance(texts, _Texts) else _Texts(texts)
        self.specials = None if specials is None else _object_array(specials)
        lengths = {len(a) for a in (self.text, self.start, self.end)}
        if self.specials is not None:
            lengths.add(len(self.specials))
        if len(lengths) != 1:
            raise ValueError(f"Rows needs one entry per row in each array, got {sorted(lengths)}.")

    @property
    def n_texts(self) -> int:
        """Number of texts, those without any row included."""
        if self.texts is not None:
            return len(self.texts)
        return int(self.text.max()) + 1 if len(self.text) else 0

    @property
    def groups(self) -> np.ndarray:
        """Index of the text of each row."""
        return self.text

    @property
    def units(self) -> np.ndarray:
        """The string of each row.

        Raises
        ------
        ValueError
            If the texts are not known.
        """
        texts, specials = self._known_texts(), self.specials
        units = [
            texts[t][s:e].strip()
            for t, s, e in zip(
                self.text.tolist(), self.start.tolist(), self.end.tolist(), strict=True
            )
        ]
        if specials is not None:
            units = [u if s is None else s for u, s in zip(units, specials, strict=True)]
        return _object_array(units)

    def context(self, i: int, width: int) -> tuple[str, str, str]:
        """Give the text around one row.

        Parameters
        ----------
        i : int
            Number of the row, negative from the end.
        width : int
            Most characters to give on either side.

        Returns
        -------
        left, unit, right : str
            ``unit`` is ``units[i]``, and ``left + unit + right`` a piece of the text as it
            stands there, line breaks included. ``left`` does not begin, and ``right`` does not
            end, with white space or in the middle of a word. Only where no white space is
            within ``width`` is a word cut, so that scripts without spaces have a context, too.
            A row without a place in the text, such as an added special token, has none: both
            sides are empty.

        Raises
        ------
        IndexError
            If there is no row ``i``.
        ValueError
            If ``width`` is no int of at least 0, or if the texts are not known.

        Examples
        --------
        >>> rows = Rows([0], [12], [17], ["An apple is green, and so are limes."])
        >>> rows.context(0, 10)
        ('apple is ', 'green', ', and so')
        >>> rows.context(0, 6)
        ('is ', 'green', ', and')
        """
        if not isinstance(width, numbers.Integral) or isinstance(width, bool) or width < 0:
            raise ValueError(
                "The 'width' of Rows.context must be a number of characters, an int of at least "
                f"0. Got {width!r} instead."
            )
        text, start, end = self._known_texts()[self.text[i]], int(self.start[i]), int(self.end[i])
        special = None if self.specials is None else self.specials[i]
        if special is not None or start == end:
            return "", special or "", ""
        start = end - len(text[start:end].lstrip())
        end = start + len(text[start:end].strip())
        cut, stop = max(0, start - int(width)), end + int(width)
        # The right side is the left side of the text read backwards.
        left = _whole_words(text[cut:start], text[max(0, cut - 1) : cut])
        right = _whole_words(text[end:stop][::-1], text[stop : stop + 1])[::-1]
        return left, text[start:end], right

    def _known_texts(self) -> _Texts:
        if self.texts is None:
            raise ValueError(
                "These rows know the numbers of their texts but not the texts. Pass units= "
                "(one string per row) to the step that needs them."
            )
        return self.texts

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, key) -> Rows:
        if isinstance(key, numbers.Integral):
            key = [key]  # one row is still rows
        specials = None if self.specials is None else self.specials[key]
        return Rows(self.text[key], self.start[key], self.end[key], self.texts, specials)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return (
            np.array_equal(self.text, other.text)
            and np.array_equal(self.start, other.start)
            and np.array_equal(self.end, other.end)
            and self.texts == other.texts
            and _as_list(self.specials) == _as_list(other.specials)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows(n_rows={len(self)}, n_texts={self.n_texts})"

    def __deepcopy__(self, memo) -> Rows:
        return Rows(
            self.text.copy(),
            self.start.copy(),
            self.end.copy(),
            self.texts,
            _as_list(self.specials),
        )


class _Texts(tuple):
    """An immutable list of texts that copies by reference, also deep ones.

    ``labels`` is the index of the pandas Series that they came in, if they did.
    """

    labels: Any = None

    def __deepcopy__(self, memo):
        return self


def _whole_words(window: str, before: str) -> str:
    """Drop from the start of a window the rest of a word that began before it."""
    if before and not before.isspace():
        rest = _SOLID.match(window).end()  # type: ignore[union-attr]
        if rest < len(window):
            window = window[rest:]
    return window.lstrip()


def _object_array(values) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _as_list(values):
    return None if values is None else list(values)


def _is_number(value) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    return isinstance(value, numbers.Real)


def _index_rows(rows: Rows | None, key: Any, ndim: int) -> Rows | None:
    """Apply the row part of an indexing key to rows, or None where it has no row part."""
    if rows is None:
        return None
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(p is None or isinstance(p, bool | np.bool_) for p in parts):
        return None
    if any(p is Ellipsis for p in parts):
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    parts += [slice(None)] * (ndim - len(parts))
    if len(parts) != ndim or any(sparse.issparse(p) for p in parts):
        return None
    return _take_rows(rows, *parts)


def _take_rows(rows: Rows, row_key: Any, column_key: Any = slice(None)) -> Rows | None:
    fancy_column = not isinstance(column_key, slice) and np.ndim(column_key) > 0
    if isinstance(row_key, slice):
        return rows[row_key]
    picked = np.asarray(row_key)
    if picked.size == 0 and picked.dtype.kind == "f":
        picked = picked.astype(np.intp)
    if picked.ndim == 0:
        return None if picked.dtype.kind == "b" else rows[picked.reshape(1)]
    if picked.ndim == 1 and not fancy_column:
        return rows[picked]
    if picked.ndim == 2 and picked.shape[1] == 1 and np.ndim(column_key) == 2:
        return rows[picked.ravel()]  # np.ix_
    return None


def _fits(rows: Rows | None, shape: tuple[int, ...]) -> bool:
    """Tell whether rows describe axis 0 of this shape (or the one row of a vector)."""
    if rows is None or len(shape) not in (1, 2):
        return False
    return len(rows) == shape[0] or (len(shape) == 1 and len(rows) == 1)


# Functions of numpy that write into their first argument without going through it.
_WRITES_FIRST_ARGUMENT = {
    np.copyto,
    np.place,
    np.put,
    np.put_along_axis,
    np.putmask,
    np.fill_diagonal,
}


# Matrices with rows that are alive, by identity: a write through one view of a block of
# memory (as Generator.shuffle does) must reach the rows of every other view of it.
_LIVE: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _drop_rows_over(memory: np.ndarray) -> None:
    for matrix in [reference() for reference in _LIVE.valuerefs()]:
        if matrix is not None and np.may_share_memory(memory, _memory(matrix)):
            matrix._rows = None


def _memory(matrix) -> np.ndarray:
    return matrix.data if sparse.issparse(matrix) else matrix


class RowsArray(np.ndarray):
    """An ndarray that carries the `Rows` of its first axis in ``.rows``.

    A write that reaches the memory behind its back, through a plain array over the same
    memory or through ``X.flat[...]``, cannot be seen and leaves the rows as they were.
    """

    _rows: Rows | None

    def __array_finalize__(self, obj):
        self._rows = None

    def _set_rows(self, rows):
        self._rows = rows
        if rows is not None:
            _LIVE[id(self)] = self
        return self

    def _values_written(self):
        _drop_rows_over(self)

    @property
    def rows(self) -> Rows | None:
        """The rows of the first axis; None once an operation has dropped them."""
        rows = getattr(self, "_rows", None)
        return rows if _fits(rows, self.shape) else None

    def __getitem__(self, key):
        out = super().__getitem__(key)
        if isinstance(out, RowsArray) and self.rows is not None:
            whole_vector = self.ndim == 1 and len(self.rows) != self.shape[0]
            out._set_rows(None if whole_vector else _index_rows(self.rows, key, self.ndim))
        return out

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self._values_written()

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(i) if isinstance(i, RowsArray) else i for i in inputs]
        if out is not None:
            kwargs["out"] = tuple(np.asarray(o) if isinstance(o, RowsArray) else o for o in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        rows = _rows_of_scaling(ufunc, method, inputs) if "where" not in kwargs else None
        if out is None:
            if method == "at" and isinstance(inputs[0], RowsArray):
                inputs[0]._values_written()
            return with_rows(result, rows) if rows is not None else result
        for target in out:
            if isinstance(target, RowsArray) and not (rows is not None and target is inputs[0]):
                target._values_written()
                target._set_rows(rows)
        return out[0] if len(out) == 1 else out

    def __array_function__(self, func, types, args, kwargs):
        result = super().__array_function__(func, types, args, kwargs)
        written = [kwargs.get("out"), *(a for a in args if a is result)]
        if func in _WRITES_FIRST_ARGUMENT:
            written += [*args[:1], *kwargs.values()]
        _mark_written(*written)
        return result

    def _keep(self, out):
        return out._set_rows(self._rows) if isinstance(out, RowsArray) else out

    def copy(self, order="C"):
        """Copy values and rows."""
        return self._keep(super().copy(order))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        rows = self.rows
        return self.copy()._set_rows(None if rows is None else rows.__deepcopy__(memo))

    def astype(self, dtype, order="K", casting="unsafe", subok=True, copy=True):
        """Cast the values, keep the rows."""
        return self._keep(super().astype(dtype, order, casting, subok, copy))

    def __reduce_ex__(self, protocol):
        return _rebuild_array, (np.asarray(self), self.rows)

    # In place, numpy reorders or overwrites the values without telling the subclass.

    def sort(self, *args, **kwargs):
        """Sort in place; drops the rows."""
        super().sort(*args, **kwargs)
        self._values_written()

    def partition(self, *args, **kwargs):
        """Partition in place; drops the rows."""
        super().partition(*args, **kwargs)
        self._values_written()

    def put(self, *args, **kwargs):
        """Write into the flattened array; drops the rows."""
        super().put(*args, **kwargs)
        self._values_written()

    def setfield(self, *args, **kwargs):
        """Write into a field of each value; drops the rows."""
        super().setfield(*args, **kwargs)
        self._values_written()

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "flat":
            self._values_written()

    # These write into out= without going through a ufunc.

    def take(self, indices, axis=None, out=None, mode="raise"):
        """Take values along an axis; without rows."""
        result = super().take(indices, axis, out, mode)
        _mark_written(out)
        return result

    def compress(self, condition, axis=None, out=None):
        """Select slices along an axis; without rows."""
        result = super().compress(condition, axis, out)
        _mark_written(out)
        return result

    def choose(self, choices, out=None, mode="raise"):
        """Choose among arrays; without rows."""
        result = super().choose(choices, out, mode)
        _mark_written(out)
        return result

    def dot(self, other, out=None):
        """Multiply matrices; without rows."""
        result = super().dot(other, out) if out is not None else super().dot(other)
        _mark_written(out)
        return result


def _mark_written(*targets) -> None:
    """Drop the rows of the arrays among ``targets``, whose values were overwritten."""
    for target in targets:
        if isinstance(target, RowsArray):
            target._values_written()


def _rows_of_scaling(ufunc, method, inputs) -> Rows | None:
    """Give the rows of ``X * number``, ``number * X`` and ``X / number``, else None."""
    if method != "__call__" or len(inputs) != 2:
        return None
    left, right = inputs
    if ufunc in (np.multiply, np.true_divide) and _is_number(right):
        return left.rows if isinstance(left, RowsArray) else None
    if ufunc is np.multiply and _is_number(left):
        return right.rows if isinstance(right, RowsArray) else None
    return None


def _rebuild_array(array, rows):
    return array.view(RowsArray)._set_rows(rows)


class _RowsSparse:
    """What the two CSR classes share; ``_rows`` is None unless an operation keeps it."""

    _rows: Rows | None = None
    data: np.ndarray
    shape: tuple[int, ...]

    @property
    def rows(self) -> Rows | None:
        """The rows of the first axis; None once an operation has dropped them."""
        return self._rows if _fits(self._rows, self.shape) else None

    def _set_rows(self, rows):
        self._rows = rows
        if rows is not None:
            _LIVE[id(self)] = self
        return self

    def __setattr__(self, name, value):
        # scikit-learn's inplace_swap_row, for one, moves rows by assigning new buffers.
        old = self.__dict__.get(name)
        if name in ("data", "indices", "indptr") and old is not None and value is not old:
            self._rows = None
        super().__setattr__(name, value)

    def prune(self):
        """Release unused memory; the rows are kept."""
        rows = self._rows
        super().prune()  # type: ignore[misc]
        self._rows = rows

    def _keep(self, out):
        keeps = isinstance(out, _RowsSparse) and out is not self
        return out._set_rows(self.rows) if keeps else out

    def __getitem__(self, key):
        out = super().__getitem__(key)  # type: ignore[misc]
        if isinstance(out, _RowsSparse) and out is not self:
            out._set_rows(_index_rows(self.rows, key, len(self.shape)))
        return out

    def __setitem__(self, key, value):
        _drop_rows_over(self.data)
        super().__setitem__(key, value)  # type: ignore[misc]
        self._rows = None

    def resize(self, *shape):
        """Change the shape in place; drops the rows."""
        super().resize(*shape)  # type: ignore[misc]
        self._rows = None

    def copy(self):
        """Copy values and rows."""
        return self._keep(super().copy())  # type: ignore[misc]

    __copy__ = copy

    def __deepcopy__(self, memo):
        rows = self.rows
        return self.copy()._set_rows(None if rows is None else rows.__deepcopy__(memo))

    def astype(self, dtype, casting="unsafe", copy=True):
        """Cast the values, keep the rows."""
        return self._keep(super().astype(dtype, casting=casting, copy=copy))  # type: ignore[misc]

    def _scaled(self, out, other):
        return self._keep(out) if _is_number(other) else out

    def __mul__(self, other):
        return self._scaled(super().__mul__(other), other)  # type: ignore[misc]

    def __rmul__(self, other):
        return self._scaled(super().__rmul__(other), other)  # type: ignore[misc]

    def __truediv__(self, other):
        return self._scaled(super().__truediv__(other), other)  # type: ignore[misc]

    def multiply(self, other):
        """Multiply element by element; by a number, the rows are kept."""
        return self._scaled(super().multiply(other), other)  # type: ignore[misc]


class RowsCSRMatrix(_RowsSparse, sparse.csr_matrix):  # type: ignore[misc]
    """A ``csr_matrix`` that carries the `Rows` of its first axis in ``.rows``."""


class RowsCSRArray(_RowsSparse, sparse.csr_array):
    """A ``csr_array`` that carries the `Rows` of its first axis in ``.rows``."""


def with_rows(X, rows: Rows | None):
    """Attach rows to a matrix, without copying its values.

    Parameters
    ----------
    X : ndarray or sparse matrix or array in CSR format, shape (n_rows, n_columns)
    rows : Rows, or None
        None gives ``X`` back as a plain container.

    Returns
    -------
    RowsArray, RowsCSRMatrix or RowsCSRArray
        A CSR input becomes the kind that scikit-learn's ``sparse_interface`` asks for.
    """
    out: Any
    if sparse.issparse(X):
        if rows is None:
            return _plain_csr(X)
        out = (RowsCSRArray if wants_sparse_arrays() else RowsCSRMatrix)(X, copy=False)
    else:
        if rows is None:
            return np.asarray(X)
        out = np.asarray(X).view(RowsArray)
    if not _fits(rows, out.shape):
        raise ValueError(f"{len(rows)} rows do not describe a matrix of shape {out.shape}.")
    return out._set_rows(rows)


def _plain_csr(X):
    return (sparse.csr_array if wants_sparse_arrays() else sparse.csr_matrix)(X, copy=False)


def rows_of(X) -> Rows | None:
    """Read the rows that a matrix carries.

    Only sksae's own containers and data frames whose index has the levels
    (text, start, end) are read: other libraries have a ``rows`` of their own.

    Returns
    -------
    Rows, or None
        None where ``X`` carries no rows.
    """
    if isinstance(X, RowsArray | _RowsSparse):
        return X.rows
    if not (hasattr(X, "iloc") and hasattr(X, "attrs")):
        return None
    if tuple(getattr(X.index, "names", ())) != FRAME_LEVELS:
        return None
    text, start, end = (X.index.get_level_values(name) for name in FRAME_LEVELS)
    rows = Rows(text, start, end, X.attrs.get(_FRAME_TEXTS))
    # Frames of different texts that were put together have no attrs left, and start anew.
    return rows if _FRAME_TEXTS in X.attrs or _ascend(rows) else None


def labelled_texts(texts: Sequence[str], X) -> Sequence[str]:
    """Give texts that remember the index of the pandas Series ``X`` that they came in."""
    if not (hasattr(X, "iloc") and hasattr(X, "index")):
        return texts
    labelled = _Texts(texts)
    labelled.labels = X.index
    return labelled


def labels_of(rows: Rows | None):
    """Give the index of the pandas Series that the texts of rows came in, or None."""
    return None if rows is None or rows.texts is None else rows.texts.labels


def _ascend(rows: Rows) -> bool:
    """Tell whether rows are in the order in which one call gives them."""
    same = rows.text[1:] == rows.text[:-1]
    later = (rows.start[1:] >= rows.start[:-1]) & (rows.end[1:] >= rows.end[:-1])
    return bool(((rows.text[1:] > rows.text[:-1]) | (same & later)).all())


def rows_frame(X, rows: Rows):
    """Put a dense matrix or a pandas frame into a pandas frame indexed by (text, start, end).

    The texts travel in the frame's ``attrs``, so that later steps can name the rows.
    The strings of special tokens do not.
    """
    import pandas as pd

    index = pd.MultiIndex.from_arrays([rows.text, rows.start, rows.end], names=FRAME_LEVELS)
    is_frame = isinstance(X, pd.DataFrame)
    frame = X.set_axis(index) if is_frame else pd.DataFrame(np.asarray(X), index=index)
    frame.attrs[_FRAME_TEXTS] = rows.texts
    return frame


def check_frame_output(X, estimator) -> str:
    """Name the container that ``set_output`` asks for, refusing sparse codes in a frame.

    Raises
    ------
    ValueError
        If ``X`` is sparse and the container is not "default".
    """
    container = output_container(estimator)
    if sparse.issparse(X) and container != "default":
        raise ValueError(
            f"{type(estimator).__name__} got sparse codes but set_output asks for {container}. "
            "Set sparse_output=False on the SAE, or set_output(transform='default') on "
            f"{type(estimator).__name__}."
        )
    return container


WAYS_TO_ROWS = (
    "Give it the output of a TransformerActivationExtractor or of an SAE after one; wrap a "
    "scikit-learn step in between in KeepRows(...); or pass {}."
)


_ROW_PARAMETERS = {
    "units": "units= (one string per row)",
    "groups": "groups= (the text's index of each row)",
}


def _ways(X, parameter: str) -> str:
    given = _ROW_PARAMETERS[parameter]
    if type(X).__module__.startswith("polars"):
        return (
            "A polars frame, which has no index, does not tell. Set set_output(transform='pandas') "
            f"or 'default' on the steps before it, or pass {given}."
        )
    if hasattr(X, "iloc") and tuple(getattr(X.index, "names", ())) == FRAME_LEVELS:
        return (
            "Its frame is of several calls, whose texts have the same numbers. Transform all texts "
            f"in one call, or pass {given}."
        )
    return WAYS_TO_ROWS.format(given)


def resolve_groups(X, groups: Sequence[int] | np.ndarray | None, name: str):
    """Give (text index of each row, number of texts) from ``groups=`` or the rows of ``X``.

    Raises
    ------
    ValueError
        If there is neither, or if ``groups`` does not fit ``X``.
    """
    if groups is None:
        rows = rows_of(X)
        if rows is None:
            raise ValueError(f"{name} needs to know the text of each row. {_ways(X, 'groups')}")
        return rows.groups, rows.n_texts
    groups = _per_row(groups, X, "groups", name)
    if groups.dtype.kind not in "iu" or (len(groups) and groups.min() < 0):
        lowest = f" from {groups.min()}" if groups.dtype.kind in "biuf" and len(groups) else ""
        names = groups.dtype.kind in "UOS"
        hint = " For names of documents pass pandas.factorize(groups)[0]." if names else ""
        raise ValueError(
            f"The 'groups' of {name} must be the index of each row's text, integers from 0 on. "
            f"Got {groups.dtype} values{lowest} instead.{hint}"
        )
    return groups.astype(np.int64), int(groups.max()) + 1 if len(groups) else 0


def resolve_units(X, units: Sequence[str] | np.ndarray | None, name: str) -> np.ndarray:
    """Give the string of each row from ``units=`` or the rows of ``X``.

    Raises
    ------
    ValueError
        If there is neither, or if ``units`` does not fit ``X``.
    """
    if units is not None:
        return _per_row(units, X, "units", name, dtype=object)
    rows = rows_of(X)
    if rows is None:
        raise ValueError(f"{name} needs to know the string of each row. {_ways(X, 'units')}")
    return rows.units


def _per_row(values, X, parameter: str, name: str, dtype=None) -> np.ndarray:
    values = np.asarray(values) if dtype is None else _object_array(list(values))
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if values.ndim != 1 or len(values) != n_rows:
        raise ValueError(
            f"The '{parameter}' of {name} must have one entry per row: expected {n_rows}, "
            f"got shape {values.shape}."
        )
    return values
