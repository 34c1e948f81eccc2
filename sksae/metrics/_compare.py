"""compare: every metric of several estimators, controls included, over several seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.utils import check_random_state

from .._sklearn import safe_indexing
from ..activations._rows import rows_of
from ._checks import check_share
from ._codes import dead_fraction, dense_fraction, l0
from ._decomposition import for_any_sign, is_decomposition
from ._dictionary import dictionary_coherence, pw_mcc, stability
from ._features import (
    best_matches,
    concept_f1,
    mcc,
    mean_max_cosine,
    recovered_fraction,
    uniqueness,
)
from ._observed import Observed, split_at_model
from ._probing import sparse_probing
from ._reconstruction import (
    explained_variance,
    fvu,
    mean_cosine,
    normalized_mse,
    relative_reconstruction_bias,
)

_OF_RECONSTRUCTIONS = (
    explained_variance,
    fvu,
    normalized_mse,
    mean_cosine,
    relative_reconstruction_bias,
)
_OF_CODES = (l0, dead_fraction, dense_fraction)
_OF_DICTIONARIES = (dictionary_coherence,)
_OF_FEATURES = (mean_max_cosine, recovered_fraction, mcc, uniqueness)
_BETWEEN_SEEDS = (pw_mcc, stability)


def compare(
    estimators,
    X,
    *,
    X_test=None,
    test_size=0.25,
    features=None,
    activations=None,
    y=None,
    k=(1, 5),
    n_seeds=3,
    confidence=0.95,
    random_state=None,
):
    """Fit several estimators from several seeds and measure them in every way.

    A score says little by itself: SAEs with frozen random weights come near to trained ones
    in many of them (Korznikov et al. (2026) [1]_). Put controls (`FrozenDecoderSAE`,
    `ShuffledActivations`, ...) and scikit-learn's decompositions into the same list.

    Parameters
    ----------
    estimators : list or dict of str to estimator
        SAEs, decompositions of scikit-learn (PCA, FastICA, NMF,
        MiniBatchDictionaryLearning, ...), or pipelines that hold exactly one SAE or else one
        decomposition. A list may hold pairs ``(name, estimator)``; without a name it is
        that of the class. Clones are fitted.
    X : array-like, sparse matrix, torch.Tensor or list of str
        What they take, such as activations of shape (n_samples, n_features), or texts for
        pipelines that begin with an extractor.
    X_test : object or None, default=None
        What is measured, like ``X``. None holds out a share of ``X``: whole texts, where
        ``X`` carries its rows.
    test_size : float, default=0.25
        That share, between 0 and 1.
    features : array-like of shape (n_true, n_features) or None, default=None
        The true features, where they are known.
    activations : array-like or sparse matrix of shape (n_samples, n_true) or None, default=None
        Strengths of the true features, one row for each of ``X_test``, or else of ``X``.
    y : array-like of shape (n_texts,) or None, default=None
        Classes for `sparse_probing`, one for each text of ``X_test``, or else of ``X``;
        where these know no texts, one for each row.
    k : int or iterable of int, default=(1, 5)
        Numbers of concepts in probing. Those above the number of concepts are left out.
    n_seeds : int, default=3
        Fits of each estimator. One without any ``random_state`` is fitted once.
    confidence : float, default=0.95
        Level of the intervals, between 0 and 1.
    random_state : int, RandomState instance or None, default=None
        Of the seeds, which are the same for all estimators, of the held-out rows and of
        probing. An int makes the result repeatable.

    Returns
    -------
    pandas.DataFrame
        One row per estimator and metric, with the columns

        - ``estimator``: the name;
        - ``kind``: "sae", "control" or "baseline", which is a decomposition;
        - ``metric``: a function of `sksae.metrics`, "probing_top5" for `sparse_probing`;
        - ``mean``: over the seeds;
        - ``ci_low``, ``ci_high``: ``mean -+ t * s / sqrt(n_seeds)``, with the standard
          deviation s over the seeds and Student's t for ``n_seeds - 1``; NaN for one seed
          and for what is one number for all seeds;
        - ``n_seeds``: the number of fits.

    Raises
    ------
    TypeError
        If ``estimators`` is no list or dict, or holds what cannot be compared.
    ValueError
        For names given twice, and for invalid parameters or data.

    See Also
    --------
    combine_scorers : Several metrics as ``scoring`` of scikit-learn's searches.
    sksae.StableConcepts : The concepts on which seeds agree.

    Notes
    -----
    Measured are, on held-out rows: `explained_variance`, `mean_cosine` (higher is better),
    `fvu`, `normalized_mse`, `dead_fraction`, `dense_fraction` (lower is better),
    `relative_reconstruction_bias` (1 is best) and `l0`; of the dictionary:
    `dictionary_coherence` (lower is better), with ``features`` `mean_max_cosine`,
    `recovered_fraction`, `mcc` and `uniqueness`, with ``activations`` too `concept_f1`; with
    ``y`` `sparse_probing`; between the dictionaries of two seeds or more `pw_mcc` and
    `stability` (all of them: higher is better).

    The intervals are those of the seeds alone: they say what another seed would give on
    these rows, not what other rows would give. Compare estimators at equal L0: without one
    more variance explained may just be more codes. Decompositions have codes and directions
    of either sign, which counts against them in `mean_max_cosine` and `stability`.

    Pipelines are fitted whole; steps after the SAE are not measured. SAEs that stand alone
    are fitted with `fit_many`, all seeds together. An NMF gets ``X`` minus the smallest
    training value of each feature, and its reconstructions are shifted back, so that all its
    numbers are about the same rows; inside a pipeline it is left alone.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", arXiv:2602.14111.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> from sksae import FrozenDecoderSAE, TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, features = make_activations(800, 16, 16, n_active=2, random_state=0)
    >>> params = {"nb_concepts": 24, "top_k": 2, "batch_size": 64}
    >>> estimators = [TopKSAE(**params), FrozenDecoderSAE(**params), PCA(2)]
    >>> table = compare(estimators, X, features=features, n_seeds=2, random_state=0)
    >>> list(table.columns)
    ['estimator', 'kind', 'metric', 'mean', 'ci_low', 'ci_high', 'n_seeds']
    >>> means = table.pivot(index="estimator", columns="metric", values="mean")
    >>> means["recovered_fraction"].idxmax()
    'TopKSAE'
    """
    pandas = _pandas()
    named = _named(estimators)
    _check_numbers(n_seeds, confidence)
    rng = check_random_state(random_state)
    seeds = [int(seed) for seed in rng.randint(np.iinfo(np.int32).max, size=n_seeds)]
    task = _Task(X, X_test, test_size, features, activations, y, k, rng)
    lines = []
    for name, estimator in named.items():
        try:
            values = task.measure(estimator, seeds)
        except Exception as exc:
            exc.add_note(f"This was {name!r} in sksae.metrics.compare.")
            raise
        kind = _kind(estimator)
        lines += [(name, kind, metric, *_summary(v, confidence)) for metric, v in values]
    columns = ["estimator", "kind", "metric", "mean", "ci_low", "ci_high", "n_seeds"]
    return pandas.DataFrame(lines, columns=columns)


class _Task:
    """The rows to fit and to measure on, and what is known of them."""

    def __init__(self, X, X_test, test_size, features, activations, y, k, rng):
        from ..estimators._input import to_array

        self.features, self.y = features, y
        self.sizes = list(k) if isinstance(k, Iterable) else [k]
        self.seed = int(rng.randint(np.iinfo(np.int32).max))
        X = to_array(X, "compare")
        if X_test is None:
            train, test = _split(X, test_size, self.seed)
            self.train, self.test = safe_indexing(X, train), safe_indexing(X, test)
            self.activations = None if activations is None else safe_indexing(activations, test)
            self.labelled = X
        else:
            self.train, self.test = X, to_array(X_test, "compare")
            self.activations, self.labelled = activations, self.test

    def measure(self, estimator, seeds) -> list[tuple[str, Any]]:
        """Give ``(metric, values)``: a list with one value a seed, or one and their number."""
        by_seed: list[dict[str, float]] = []
        dictionaries = []
        for fitted in _fits(estimator, self.train, seeds):
            observed = Observed(fitted, self.test, "compare")
            by_seed.append(self._of_one(fitted, observed))
            dictionaries.append(observed.components)
        values: list[tuple[str, Any]] = [
            (name, [one[name] for one in by_seed]) for name in by_seed[0]
        ]
        if len(dictionaries) > 1:
            n = len(dictionaries)
            values += [(f.__name__, (f(dictionaries), n)) for f in _BETWEEN_SEEDS]
        return values

    def _of_one(self, fitted, observed) -> dict[str, float]:
        X, X_hat = observed.activations, observed.reconstruction
        found = {f.__name__: f(X, X_hat) for f in _OF_RECONSTRUCTIONS}
        found |= {f.__name__: f(observed.codes) for f in _OF_CODES}
        found |= {f.__name__: f(observed.components) for f in _OF_DICTIONARIES}
        if self.features is not None:
            found |= {f.__name__: f(observed.components, self.features) for f in _OF_FEATURES}
        if self.features is not None and self.activations is not None:
            match = best_matches(observed.components, self.features)
            found["concept_f1"] = concept_f1(observed.codes, self.activations, match=match)
        return found if self.y is None else found | self._probed(fitted, observed)

    def _probed(self, fitted, observed) -> dict[str, float]:
        if self.labelled is not self.test:
            observed = Observed(fitted, self.labelled, "compare")
        codes = observed.codes_of_rows
        sizes = [k for k in self.sizes if not isinstance(k, Integral) or k <= codes.shape[1]]
        if not sizes:
            return {}
        scores = sparse_probing(None, codes, self.y, k=sizes, random_state=self.seed)
        return {f"probing_top{size}": score for size, score in scores.items()}


def _fits(estimator, X, seeds):
    """Give fitted clones one after the other; SAEs that stand alone are fitted together."""
    from ..estimators import BaseSAE, fit_many

    if not _with_seed(estimator, 0)[1]:
        seeds = seeds[:1]
    if isinstance(estimator, BaseSAE) and hasattr(estimator, "_fit_steps"):
        yield from fit_many([_with_seed(estimator, seed)[0] for seed in seeds], X)
        return
    for seed in seeds:
        twin = _with_seed(estimator, seed)[0]
        alone = is_decomposition(twin)
        yield (for_any_sign(twin) if alone else twin).fit(_plain(X) if alone else X)


def _with_seed(estimator, seed):
    """Give a clone with this seed, and whether there is something that it seeds."""
    twin = clone(estimator)
    names = [n for n in twin.get_params() if n.split("__")[-1] == "random_state"]
    return twin.set_params(**dict.fromkeys(names, seed)), bool(names)


def _plain(X):
    return np.asarray(X) if isinstance(X, np.ndarray) else X


def _split(X, test_size, seed):
    """Give the numbers of training and held-out rows, whole texts where they are known."""
    test_size = check_share(test_size, "test_size", "compare")
    rows = rows_of(X)
    splitter = ShuffleSplit if rows is None else GroupShuffleSplit
    split = splitter(1, test_size=test_size, random_state=seed)
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    return next(split.split(np.zeros(n), groups=None if rows is None else rows.groups))


def _summary(values, confidence):
    """Give mean, both ends of the interval, and the number of seeds."""
    if isinstance(values, tuple):
        return values[0], np.nan, np.nan, values[1]
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, np.nan, np.nan, n
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return mean, float(mean - half), float(mean + half), n


def _kind(estimator) -> str:
    model = split_at_model(estimator, "compare")[1]
    if _is_sae(model):
        return "control" if getattr(model, "_is_control", False) else "sae"
    return "baseline"


def _is_sae(model) -> bool:
    """Tell whether something is, or stands for, an SAE."""
    from ..estimators import BaseSAE

    return isinstance(model, BaseSAE)


def _named(estimators) -> dict[str, Any]:
    """Give the estimators by name, after refusing what cannot be compared."""
    if isinstance(estimators, str) or not isinstance(estimators, Iterable):
        raise TypeError(
            "compare takes a list or a dict of estimators. Got "
            f"{type(estimators).__name__}; for a single one pass [estimator]."
        )
    given = estimators.items() if isinstance(estimators, Mapping) else estimators
    pairs = [e if isinstance(e, tuple) and len(e) == 2 else (None, e) for e in given]
    if not pairs:
        raise ValueError("compare needs at least one estimator. Got none.")
    for _, estimator in pairs:
        if not hasattr(estimator, "fit"):
            raise TypeError(f"compare takes estimators. Got {estimator!r} among them.")
        split_at_model(estimator, "compare")
    return dict(zip(_unique([_name(*pair) for pair in pairs]), (e for _, e in pairs), strict=True))


def _name(name, estimator) -> tuple[str, bool]:
    """Give the name, and whether it was given."""
    if name is not None:
        return str(name), True
    return type(split_at_model(estimator, "compare")[1]).__name__, False


def _unique(names: list[tuple[str, bool]]) -> list[str]:
    """Give names with numbers where classes share one; refuse given ones that are not unique."""
    counts, seen, out = Counter(name for name, _ in names), Counter[str](), []
    for name, given in names:
        if counts[name] > 1 and given:
            raise ValueError(f"compare got the name {name!r} twice. Give each estimator its own.")
        seen[name] += 1
        out.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return out


def _check_numbers(n_seeds, confidence) -> None:
    if isinstance(n_seeds, bool) or not isinstance(n_seeds, Integral) or n_seeds < 1:
        raise ValueError(f"n_seeds of compare must be an int of at least 1. Got {n_seeds!r}.")
    if not 0 < check_share(confidence, "confidence", "compare") < 1:
        raise ValueError(f"confidence of compare must lie between 0 and 1. Got {confidence}.")


def _pandas():
    try:
        import pandas
    except ImportError as exc:
        raise ImportError(
            "Missing optional dependency 'pandas', needed by sksae.metrics.compare. Try: pip "
            "install pandas"
        ) from exc
    return pandas
