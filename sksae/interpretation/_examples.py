"""MaxActivatingExamples: concepts shown by the stretches of text that activate them."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import Interval, StrOptions, fit_context
from ..activations._rows import resolve_groups, rows_of
from ._base import ConceptInterpreter
from ._columns import Columns
from ._contexts import ConceptExamples
from ._reading import Reading
from ._rendering import html_fragment, html_page, plain_text

_NAMED_UNITS = 3


class ExamplesDisplay:
    """Examples of some concepts, as a notebook or a terminal shows them."""

    def __init__(self, named):
        self._named = list(named)

    def _repr_html_(self):
        return html_fragment(self._named)

    def __repr__(self):
        return plain_text(self._named)


class MaxActivatingExamples(ConceptInterpreter):
    """Show each concept by stretches of text: where it is most active, and where it is less.

    The strongest examples alone mislead: many concepts are clear at the top and mixed below,
    which is why Bricken et al. (2023) [1]_ ("Manual Human Analysis") judge features by
    examples from the whole range of activations. So there are two kinds here. The
    *top* examples are the units with the largest activations, one of each text. The others
    are drawn at random from *quantiles*: the units that a concept is active on are ranked
    and cut into ``n_quantiles`` parts of equal size. Each example comes with the units
    around it and the activation on each. The codes themselves pass unchanged.

    Parameters
    ----------
    n_top : int, default=10
        Most top examples per concept.
    n_quantiles : int, default=5
        Number of parts that the active units are cut into.
    n_per_quantile : int, default=2
        Most examples drawn from each part, each from another text and none that is among
        the top ones. 0 draws none.
    context : int, default=10
        Units shown on either side of the one that an example was chosen for.
    concepts_indices : "all", int or array-like of int, default="all"
        Columns to interpret.
    random_state : int, RandomState instance or None, default=None
        Draws the examples of the quantiles. With an int, those of a concept do not depend
        on which others are interpreted.

    Attributes
    ----------
    interpretations_ : dict of int to sequence of ActivatingExample, or to None
        The examples of each interpreted concept: top ones, strongest first, then those of
        the quantiles, from the highest part to the lowest. None for a dead concept, one
        that is above 0 nowhere.
    n_features_in_ : int
        Number of columns (concepts) seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    TopKInputs : The units alone, merged where they are the same string.

    Notes
    -----
    Texts and units come from the input (the output of an extractor or an SAE, or a pandas
    frame made from one), or from ``units`` and ``groups``. With these, a text is its units
    joined by spaces; without ``groups`` each unit is a text of its own, and stands alone.

    Rows of the same characters are one unit, whose activation is their largest: byte-level
    tokenizers cut one emoji into several tokens. Of equal activations the one that comes
    first in the texts ranks higher. Negative activations count as not active.

    The examples refer to the texts: a pickle carries the texts seen in fit.

    References
    ----------
    .. [1] Bricken et al. (2023), "Towards Monosemanticity: Decomposing Language Models With
       Dictionary Learning", Transformer Circuits Thread.

    Examples
    --------
    >>> import numpy as np
    >>> units = ["the", "ship", "sails", "the", "sea", "is", "blue"]
    >>> codes = np.array([[0.0], [3.0], [0.5], [0.0], [2.0], [0.0], [0.0]])
    >>> shown = MaxActivatingExamples(n_per_quantile=0, context=1)
    >>> shown.fit(codes, units=units, groups=[0, 0, 0, 1, 1, 1, 1]).get_feature_names_out()
    array(['0: ship, sea'], dtype=object)
    >>> shown.show(0)
    0: ship, sea
      top        3  the [[ship]] [sails]
      top        2  the [[sea]] is
    >>> shown.interpretations_[0][0].activations
    (0.0, 3.0, 0.5)
    """

    _parameter_constraints: dict = {
        "n_top": [Interval(Integral, 1, None, closed="left")],
        "n_quantiles": [Interval(Integral, 1, None, closed="left")],
        "n_per_quantile": [Interval(Integral, 0, None, closed="left")],
        "context": [Interval(Integral, 0, None, closed="left")],
        "concepts_indices": [StrOptions({"all"}), Integral, "array-like"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_top=10,
        *,
        n_quantiles=5,
        n_per_quantile=2,
        context=10,
        concepts_indices="all",
        random_state=None,
    ):
        self.n_top = n_top
        self.n_quantiles = n_quantiles
        self.n_per_quantile = n_per_quantile
        self.context = context
        self.concepts_indices = concepts_indices
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, units=None, groups=None):
        """Find the examples of each concept.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        y : None
            Ignored, whatever its length.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row, in reading order; needed where ``X`` does not carry its
            rows.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row, where ``units`` tells the strings.

        Returns
        -------
        self : MaxActivatingExamples
            The fitted transformer.

        Raises
        ------
        ValueError
            If neither ``X`` nor ``units`` tells the string of each row, or if ``units`` or
            ``groups`` does not fit ``X``.
        """
        reading = self._reading(X, units, groups)
        codes = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        concepts = self._concepts()
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        self.interpretations_ = dict.fromkeys(concepts.tolist())
        columns = Columns(codes)
        for concept in concepts.tolist():
            rows, values = columns[concept]
            if not len(rows):
                continue
            active, values = _by_position(reading.position[rows], values)
            rng = np.random.default_rng([seed, concept])
            chosen, quantiles = self._choose(values, reading.text[active], rng)
            self.interpretations_[concept] = ConceptExamples(
                reading, self.context, active[chosen], quantiles, active, values
            )
        return self

    def fit_transform(self, X, y=None, *, units=None, groups=None):
        """Find the examples of each concept and give the codes back unchanged.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        y : None
            Ignored, whatever its length.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row; needed where ``X`` does not carry its rows.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row, where ``units`` tells the strings.

        Returns
        -------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            The same object; under ``set_output`` a frame with the concepts' names.
        """
        return self.fit(X, y, units=units, groups=groups).transform(X)

    def to_frame(self):
        """Give the examples as a table, one line per concept and example.

        Returns
        -------
        table : pandas.DataFrame
            Columns concept, quantile, activation (of the unit that the example was chosen
            for), unit, context, text, start and end. Dead concepts have no line.
        """
        check_is_fitted(self)
        import pandas as pd

        columns = ["quantile", "activation", "unit", "context", "text", "start", "end"]
        lines = [
            (concept, *(getattr(example, name) for name in columns))
            for concept, examples in self.interpretations_.items()
            for example in examples or ()
        ]
        return pd.DataFrame(lines, columns=["concept", *columns])

    def to_html(self, concepts=None):
        """Give a page that shows the examples, units shaded by their activation.

        Parameters
        ----------
        concepts : int or array-like of int, default=None
            Which concepts; None takes all that were interpreted. One takes some 5 to 20 kB.

        Returns
        -------
        page : str
            HTML that needs no other file; it reads in light and in dark.
        """
        return html_page(self._named(concepts))

    def to_text(self, concepts=None, *, ansi=False):
        """Give the examples as lines of text.

        Parameters
        ----------
        concepts : int or array-like of int, default=None
            Which concepts; None takes all that were interpreted.
        ansi : bool, default=False
            Whether to shade units by codes that terminals know. Else active units stand
            between brackets, the one that an example was chosen for between double ones.

        Returns
        -------
        text : str
            The name of each concept and a line for each of its examples.
        """
        return plain_text(self._named(concepts), ansi)

    def show(self, concepts=None):
        """Show the examples in a notebook, or in a terminal.

        Parameters
        ----------
        concepts : int or array-like of int, default=None
            Which concepts; None takes all that were interpreted.

        Returns
        -------
        display : ExamplesDisplay
            An object that notebooks show as HTML and terminals as text.
        """
        return ExamplesDisplay(self._named(concepts))

    def _reading(self, X, units, groups):
        rows = rows_of(X)
        if units is None and groups is None and rows is not None and rows.texts is not None:
            return Reading(rows)
        units = self._checked_units(X, units)
        if groups is None and rows is None:
            groups = np.arange(len(units))
        else:
            groups, _ = resolve_groups(X, groups, type(self).__name__)
        return Reading.of_units(units, groups)

    def _choose(self, values, texts, rng):
        """Give which of the active units are shown, and what each is an example of."""
        ranked = np.argsort(-values, kind="stable")
        top = _one_per_text(ranked, texts)[: self.n_top]
        chosen, quantiles = [top], ["top"] * len(top)
        shown = np.zeros(len(values), dtype=bool)
        shown[top] = True
        cuts = len(values) * np.arange(self.n_quantiles + 1) // self.n_quantiles
        for i in range(self.n_quantiles if self.n_per_quantile else 0):
            part = ranked[cuts[i] : cuts[i + 1]]
            part = rng.permutation(part[~shown[part]])
            drawn = _one_per_text(part, texts)[: self.n_per_quantile]
            chosen.append(drawn[np.argsort(-values[drawn], kind="stable")])
            quantiles += [f"{self.n_quantiles - i}/{self.n_quantiles}"] * len(drawn)
        return np.concatenate(chosen), quantiles

    def _name(self, interpretation):
        return ", ".join(self._label(interpretation))

    def _label(self, interpretation):
        return list(dict.fromkeys(interpretation.top_units()))[:_NAMED_UNITS]

    def _named(self, concepts):
        check_is_fitted(self)
        if concepts is None:
            concepts = list(self.interpretations_)
        concepts = np.atleast_1d(np.asarray(concepts)).tolist()
        unknown = [concept for concept in concepts if concept not in self.interpretations_]
        if unknown:
            raise ValueError(
                f"Concept {unknown[0]!r} was not interpreted by this {type(self).__name__}. "
                "Choose from interpretations_, or fit with concepts_indices='all'."
            )
        return [(self._feature_name(c), self.interpretations_[c]) for c in concepts]


def _by_position(position, values):
    """Sort by position, keeping the largest value of each."""
    if np.all(position[1:] > position[:-1]):
        return position, values
    order = np.argsort(position, kind="stable")
    position, values = position[order], values[order]
    first = np.flatnonzero(np.diff(position, prepend=-1))
    return position[first], np.maximum.reduceat(values, first)


def _one_per_text(order, texts):
    """Keep the first of each text."""
    _, first = np.unique(texts[order], return_index=True)
    return order[np.sort(first)]
