"""LLMLabels: names concepts by asking a language model about examples."""

import warnings
from contextlib import closing
from functools import partial
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from tqdm.auto import tqdm

from .._sklearn import Interval, StrOptions, fit_context
from ..activations._rows import resolve_groups, rows_of
from ..activations._sharing import SharesModel
from ._base import ConceptInterpreter
from ._columns import Columns
from ._llm_asking import ask_all
from ._llm_backends import LLMError
from ._llm_examples import Neighbours, SamplingMethod, one_row_per_unit, sample, written
from ._llm_prompts import NO_ANSWER, SYSTEM_PROMPT, clean_label, messages_of, one_line

_SAMPLING = {method.value for method in SamplingMethod} | set(SamplingMethod.__members__)
# After so many failures in a row, a run that goes on in spite of failures stops asking.
_FAILURES_IN_A_ROW = 5
_LISTED = 20


class LLMLabels(SharesModel, ConceptInterpreter):
    """Name each concept by asking a language model what its examples have in common.

    An example is the string of a row (a token, a word, a sentence) in which the concept is
    active, alone or in its context, with its importance: the activation on a scale on which
    the largest of the concept is 10, rounded. The model is never asked about a dead concept.
    The codes themselves pass unchanged, under the labels of their concepts.

    Parameters
    ----------
    llm : callable
        From a chat, a list of dicts with the keys role and content, to the answer, a str:
        `TransformersLLM`, `OpenAILLM`, or a function of your own. An attribute
        ``max_concurrency`` of it tells how many threads may call it at once; without one it is
        called from this thread.
    sampling_method : {"top", "quantile", "random"} or SamplingMethod, default="top"
        Which of the rows with an activation above zero become examples (upper-case names are
        taken, too):

        - "top": the ``k_examples`` with the largest activations, largest first.
        - "quantile": sorted by activation, they are cut into ``k_quantile`` slices of equal
          size, the last of which takes what remains; ``k_examples // k_quantile`` are drawn
          from each. A concept with fewer than ``k_quantile`` shows all.
        - "random": ``k_examples`` drawn without replacement.
    k_examples : int, default=30
        Examples of a concept, at most.
    k_context : int, default=0
        Rows of the same text that are shown on each side of an example. The example then
        stands between << and >>, and the importance of every row shown is listed.
    k_quantile : int, default=5
        Number of slices for "quantile", at most ``k_examples``.
    system_prompt : str, default=None
        The instructions. By default they ask for one label of at most eight words.
    concepts_indices : "all", int or array-like of int, default="all"
        Columns to interpret.
    on_error : {"raise", "warn"}, default="raise"
        What happens where the model fails on a concept, after the retries of the backend:
        an `LLMError`, or a warning at the end that lists the concepts. Then five failures in a
        row end the asking.
    warm_start : bool, default=False
        Whether fit keeps the labels of the last one, and asks only about concepts that have
        none. Meant for the same codes, after an error or an interruption.
    random_state : int, RandomState instance or None, default=None
        Draws the examples of "quantile" and "random". With an int the examples of a concept do
        not depend on which others are interpreted.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    interpretations_ : dict of int to str, or to None
        The label of each interpreted concept, its first line without quotation marks, at most
        80 characters long. "(no answer)" where the model said nothing usable; None for a dead
        concept, one without an example.
    n_features_in_ : int
        Number of columns (concepts) seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    TransformersLLM : A model on this machine.
    OpenAILLM : A model behind an OpenAI-compatible endpoint.
    TopKInputs : Names without any language model.

    Notes
    -----
    No answer is lost: ``interpretations_`` is filled as answers come. After an error, or
    Ctrl-C, it holds what was labelled, `LLMError` holds the same in ``labels``, and
    ``set_params(warm_start=True).fit`` asks about the rest.

    `prompts` gives the questions without asking them, to be read and counted beforehand. With
    tokens, the largest activations of a concept are often those of one and the same token:
    ``k_context=10`` or "quantile" tells more.

    Of equal activations those of the first rows come first. Units that are empty or white
    space are left out. Rows of the same characters are one unit with the largest of their
    activations: byte-level tokenizers cut one emoji into several tokens. ``clone`` shares
    ``llm``.

    The method goes back to Bills et al. [1]_; the examples with their importance and context
    follow Paulo et al. [2]_.

    References
    ----------
    .. [1] Bills et al. (2023), "Language models can explain neurons in language models",
       OpenAI, section "Step 1: explain the neuron's activations".
    .. [2] Paulo et al. (2024), "Automatically interpreting millions of features in large
       language models", arXiv:2410.13928, section 3.

    Examples
    --------
    A function that repeats the last example stands for a language model.

    >>> import numpy as np
    >>> codes = np.array([[0.5, 0.0], [2.0, 0.0], [1.0, 0.0]])
    >>> def echo(messages):
    ...     return messages[-1]["content"].splitlines()[-3]
    >>> labels = LLMLabels(echo, k_examples=2).fit(codes, units=["sea", "ship", "boat"])
    >>> labels.interpretations_
    {0: 'Example 2: boat (activation: 5)', 1: None}
    >>> print(labels.prompts(codes, units=["sea", "ship", "boat"])[0][-1]["content"])
    Example 1: ship (activation: 10)
    Example 2: boat (activation: 5)
    <BLANKLINE>
    What is the concept? Give only the label.
    """

    _shared_by_clones = ("llm",)
    _parameter_constraints: dict = {
        "llm": [callable],
        "sampling_method": [StrOptions(_SAMPLING)],
        "k_examples": [Interval(Integral, 1, None, closed="left")],
        "k_context": [Interval(Integral, 0, None, closed="left")],
        "k_quantile": [Interval(Integral, 1, None, closed="left")],
        "system_prompt": [str, None],
        "concepts_indices": [StrOptions({"all"}), Integral, "array-like"],
        "on_error": [StrOptions({"raise", "warn"})],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        llm,
        sampling_method="top",
        k_examples=30,
        k_context=0,
        *,
        k_quantile=5,
        system_prompt=None,
        concepts_indices="all",
        on_error="raise",
        warm_start=False,
        random_state=None,
        verbose=0,
    ):
        self.llm = llm
        self.sampling_method = sampling_method
        self.k_examples = k_examples
        self.k_context = k_context
        self.k_quantile = k_quantile
        self.system_prompt = system_prompt
        self.concepts_indices = concepts_indices
        self.on_error = on_error
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, units=None, groups=None):
        """Ask for the label of each concept.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        y : None
            Ignored, whatever its length.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row; needed where ``X`` does not carry its rows.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row; needed for ``k_context`` where ``X`` does not carry
            its rows. The rows of a text then stand in the order in which they come.

        Returns
        -------
        self : LLMLabels
            The fitted transformer.
        """
        known, width = self._known_labels(), getattr(self, "n_features_in_", None)
        concepts, alive, prompt = self._questions(X, units, groups)
        if not self.warm_start or width != self.n_features_in_:
            known = {}
        labels = {c: known.get(c, NO_ANSWER) if c in alive else None for c in concepts}
        self.interpretations_ = labels
        self._ask([c for c, label in labels.items() if label == NO_ANSWER], prompt)
        return self

    def fit_transform(self, X, y=None, *, units=None, groups=None):
        """Label each concept and give the codes back unchanged.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        y : None
            Ignored, whatever its length.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row; needed where ``X`` does not carry its rows.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row, as in fit.

        Returns
        -------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            The same object; under ``set_output`` a frame with the concepts' names.
        """
        return self.fit(X, y, units=units, groups=groups).transform(X)

    def prompts(self, X, *, units=None, groups=None):
        """Give what fit would ask, without asking it.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row; needed where ``X`` does not carry its rows.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row, as in fit.

        Returns
        -------
        prompts : dict of int to list of dict
            For each concept that is not dead the chat, messages with a role and a content.
            Drawn anew unless ``random_state`` is an int.
        """
        asking = self.__sklearn_clone__()
        asking._validate_params()
        concepts, alive, prompt = asking._questions(X, units, groups)
        return {concept: prompt(concept) for concept in concepts if concept in alive}

    def to_frame(self):
        """Give the labels as a table, one line per concept.

        Returns
        -------
        table : pandas.DataFrame
            Columns concept and label. Dead concepts have no line.
        """
        check_is_fitted(self)
        import pandas as pd

        lines = [item for item in self.interpretations_.items() if item[1] is not None]
        return pd.DataFrame(lines, columns=["concept", "label"])

    def _name(self, interpretation):
        return interpretation

    def _known_labels(self):
        known = getattr(self, "interpretations_", {})
        return {c: label for c, label in known.items() if label not in (None, NO_ANSWER)}

    def _questions(self, X, units, groups):
        """Give the concepts, those with examples, and the function that writes a question."""
        method = SamplingMethod(self.sampling_method.lower())
        self._check_quantiles(method)
        rows = rows_of(X) if units is None and groups is None else None
        units = self._checked_units(X, units)
        codes = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        if rows is not None:
            codes, units, rows = one_row_per_unit(codes, units, rows)
        units = [one_line(unit) for unit in units]
        named = np.array([unit != "" for unit in units], dtype=bool)
        neighbours = self._neighbours(X, rows, groups, named)
        concepts = self._concepts().tolist()
        columns = Columns(codes, named)
        counts = columns.counts()
        alive = {c for c in concepts if counts[c]}
        if method == SamplingMethod.QUANTILE:
            self._warn_of_few([c for c in concepts if 0 < counts[c] < self.k_quantile])
        seed = 0
        if method != SamplingMethod.TOP:
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return concepts, alive, partial(self._prompt, columns, units, neighbours, method, seed)

    def _prompt(self, columns, units, neighbours, method, seed, concept):
        rows, values = columns[concept]
        values = values.astype(np.float64)
        rng = np.random.default_rng([seed, concept])
        chosen = sample(values, method, self.k_examples, self.k_quantile, rng)
        examples = written(rows, values, chosen, units, neighbours, self.k_context)
        instructions = SYSTEM_PROMPT if self.system_prompt is None else self.system_prompt
        return messages_of(instructions, examples)

    def _neighbours(self, X, rows, groups, named):
        rows = rows_of(X) if rows is None and groups is None else rows
        if rows is not None:
            return Neighbours.of_rows(rows, named) if self.k_context else None
        if groups is None and not self.k_context:
            return None
        groups, _ = resolve_groups(X, groups, type(self).__name__)
        return Neighbours.of_groups(groups, named) if self.k_context else None

    def _ask(self, concepts, prompt):
        failed, in_a_row, first = [], 0, None
        outcomes = ask_all(self.llm, concepts, prompt, self._receive)
        with closing(outcomes), tqdm(total=len(concepts), disable=not self.verbose) as bar:
            for batch, error in outcomes:
                bar.update(len(batch))
                if error is None:
                    in_a_row = 0
                    continue
                if self.on_error == "raise":
                    raise self._failure(concepts, batch, error) from error
                failed, in_a_row, first = [*failed, *batch], in_a_row + 1, first or error
                if in_a_row == _FAILURES_IN_A_ROW:
                    break
        self._warn_of_unlabelled(concepts, failed, first)

    def _receive(self, concept, answer):
        self.interpretations_[concept] = clean_label(answer)

    def _failure(self, concepts, batch, error):
        labels = {c: label for c, label in self._known_labels().items() if c in concepts}
        return LLMError(
            f"The 'llm' of LLMLabels failed on {_listed(batch)}: {_described(error)} Labelled so "
            f"far: {len(labels)} of {len(concepts)}. interpretations_ keeps them, and fit with "
            "warm_start=True asks only about the others.",
            labels,
        )

    def _warn_of_unlabelled(self, concepts, failed, first):
        empty = [c for c in concepts if self.interpretations_[c] == NO_ANSWER]
        if failed:
            message = (
                f"The 'llm' of LLMLabels failed on {_listed(failed)}, the first time with: "
                f"{_described(first)} Without a label: {_listed(empty)}. fit with warm_start=True "
                "asks about them again."
            )
        elif empty:
            message = (
                f"The 'llm' of LLMLabels said nothing usable about {_listed(empty)}. They are "
                f"named '{NO_ANSWER}'."
            )
        else:
            return
        warnings.warn(message, UserWarning, stacklevel=5)

    def _check_quantiles(self, method):
        if method == SamplingMethod.QUANTILE and self.k_examples < self.k_quantile:
            raise ValueError(
                f"k_examples={self.k_examples} is below k_quantile={self.k_quantile} in LLMLabels: "
                "there must be an example for each slice. Raise k_examples or lower k_quantile."
            )

    def _warn_of_few(self, few):
        if few:
            warnings.warn(
                f"Fewer than k_quantile={self.k_quantile} rows activate {_listed(few)}. LLMLabels "
                "shows all of them.",
                UserWarning,
                stacklevel=5,
            )


def _listed(concepts):
    shown = ", ".join(map(str, concepts[:_LISTED]))
    more = f" and {len(concepts) - _LISTED} more" if len(concepts) > _LISTED else ""
    return f"{'concept' if len(concepts) == 1 else 'concepts'} {shown}{more}"


def _described(error):
    name = "" if isinstance(error, LLMError) else f"{type(error).__name__}: "
    return f"{name}{error}".rstrip(".: ") + "."
