"""StableConcepts: the concepts that an SAE finds again from other seeds."""

from __future__ import annotations

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._sklearn import Interval, StrOptions
from ..activations._rows import with_rows
from ..training import RowBatches
from ._controls import covariance_directions
from ._fit_many import fit_many
from ._parameters import one_of
from ._shuffled import shuffled_columns
from ._wrapper import SAEWrapper

_FEW = 0.05
_CONTROLS = ("gaussian", "shuffled", "random")


class StableConcepts(SAEWrapper):
    """The concepts of an SAE that other seeds find again.

    The SAE is fitted ``n_seeds`` times, to the same rows, from different seeds. The
    stability of a concept of the first fit is the mean, over the other fits, of its cosine
    to the concept that it is matched with there; concepts whose stability exceeds a
    threshold are kept. That seeds agree on fewer features than one would think is the
    finding of Paulo and Belrose (2025) [1]_; the mean over all concepts, but for the sign of
    the cosines, is the PW-MCC of Song et al. (2025) [2]_.

    What is stable also depends on chance: among many directions in few dimensions some lie
    close to each other. The threshold is therefore calibrated on a control without
    concepts, so that few of *its* directions would be kept.

    Parameters
    ----------
    estimator : BaseSAE
        The SAE; clones are fitted, with ``random_state`` of their own.
    n_seeds : int, default=5
        Number of fits, at least 2. All of them are in memory at the same time.
    threshold : "auto" or float, default="auto"
        Least stability, a cosine between -1 and 1, of a kept concept. "auto" is the
        quantile ``1 - control_rate`` of the stabilities of the control's concepts.
    control : {"gaussian", "shuffled", "random"}, default="gaussian"
        What "auto" is calibrated on. "gaussian": the same SAE, fitted as often to as many
        rows from a Gaussian with the mean and covariance of ``X``, in which every
        stability is that of the covariance or of chance. "shuffled": fitted to ``X`` with
        each column shuffled by itself, as in `ShuffledActivations`, which keeps concepts
        along the axes. "random": nothing is fitted; the directions are drawn as those of
        ``FrozenDecoderSAE(init="covariance")``. Cheap, but too lenient: what several fits to
        rows without concepts have in common is not in it. On Gaussian noise it kept 28 % to
        44 % of 64 concepts, "gaussian" 3 % to 9 %.
    control_rate : float, default=0.05
        Share of the control's concepts, at most, that exceed the threshold.
    matching : {"one_to_one", "max"}, default="one_to_one"
        Whether each concept has a partner of its own in another fit, by the matching with
        the largest sum of cosines, or the nearest one, which several may share. The former
        takes time that grows with the cube of ``nb_concepts``: seconds at 2,048 concepts,
        many minutes at 16,384.
    random_state : int, RandomState instance or None, default=None
        Of the seeds and of the control. The SAE's own is not used.

    Attributes
    ----------
    estimator_ : BaseSAE
        The first fit, with all its concepts.
    stabilities_ : ndarray of shape (nb_concepts,)
        Stability of each of its concepts, between -1 and 1.
    stability_ : ndarray of shape (n_kept,)
        Stability of those that are kept.
    support_ : ndarray of bool, shape (nb_concepts,)
        Which are kept. Dead concepts never are.
    stability_threshold_ : float
        The threshold.
    control_stabilities_ : ndarray or None
        Stabilities of the live concepts of the control; None where ``threshold`` was given.
    components_ : ndarray of shape (n_kept, n_features)
        The kept rows of the dictionary.
    decoder_bias_ : ndarray of shape (n_features,)
        The decoder bias.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str
        Where ``X`` had names.

    Warns
    -----
    ConvergenceWarning
        If fewer than 5 % of the concepts, or none, are stable.

    See Also
    --------
    sksae.metrics.pw_mcc : One number for the agreement of several dictionaries.
    FrozenDecoderSAE : A control for all other scores.

    Notes
    -----
    Codes are those of the first fit, with the columns of unstable concepts left out, so
    that `score` is the variance that the stable ones explain in their part of the sum.
    Stability is necessary and not sufficient for a concept to be more than an artefact:
    what the architecture prefers, it prefers from every seed. In a pipeline StableConcepts
    counts as the SAE.

    References
    ----------
    .. [1] Paulo and Belrose (2025), "Sparse autoencoders trained on the same data learn
       different features", arXiv:2501.16615.
    .. [2] Song et al. (2025), "Position: Mechanistic interpretability should prioritize
       feature consistency in SAEs", arXiv:2505.20254.

    Examples
    --------
    >>> from sksae import StableConcepts, TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, features = make_activations(1000, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(16, top_k=2, batch_size=64)
    >>> stable = StableConcepts(sae, n_seeds=2, random_state=0).fit(X)
    >>> [name for name in stable.get_feature_names_out()] == [
    ...     f"topksae{concept}" for concept in stable.get_support(indices=True)
    ... ]
    True
    >>> cosines = (stable.components_ @ features.T).max(axis=1)  # to what was planted
    >>> bool(cosines.mean() > 0.9)
    True
    """

    _parameter_constraints = {
        **SAEWrapper._parameter_constraints,
        "n_seeds": [Interval(Integral, 1, None, closed="left")],
        "threshold": [StrOptions({"auto"}), Interval(Real, -1, 1, closed="both")],
        "control": one_of(_CONTROLS),
        "control_rate": [Interval(Real, 0, 1, closed="neither")],
        "matching": one_of(["one_to_one", "max"]),
    }

    def __init__(
        self,
        estimator,
        n_seeds=5,
        *,
        threshold="auto",
        control="gaussian",
        control_rate=0.05,
        matching="one_to_one",
        random_state=None,
    ):
        self.estimator = estimator
        self.n_seeds = n_seeds
        self.threshold = threshold
        self.control = control
        self.control_rate = control_rate
        self.matching = matching
        self.random_state = random_state

    def _fit_estimator(self, X, rows):
        if self.n_seeds < 2:
            raise ValueError(
                f"n_seeds={self.n_seeds}: StableConcepts compares fits, so it needs at least 2. "
                "Raise n_seeds, or use the SAE alone."
            )
        rng = check_random_state(self.random_state)
        saes = self._fits(with_rows(X, rows), rng)
        stabilities = self._stabilities([sae.components_ for sae in saes])
        live, threshold, control = is_live(saes[0], X.shape[0]), self.threshold, None
        if threshold == "auto":
            control = self._control_stabilities(X, saes[0], rng)
            threshold = np.quantile(control, 1 - self.control_rate, method="higher")
        self.estimator_, self.stabilities_ = saes[0], stabilities
        self.control_stabilities_, self.stability_threshold_ = control, float(threshold)
        # Above what the control reaches, or at least what was asked for.
        passes = stabilities > threshold if control is not None else stabilities >= threshold
        self.support_ = passes & live
        self._warn_of_few()

    def _fits(self, X, rng):
        seeds = rng.randint(np.iinfo(np.int32).max, size=self.n_seeds)
        return fit_many([self._clone(int(seed)) for seed in seeds], X)

    def _stabilities(self, dictionaries):
        first, *others = (normalized(rows) for rows in dictionaries)
        match = matched_cosines if self.matching == "one_to_one" else largest_cosines
        return np.mean([match(first, other) for other in others], axis=0)

    def _control_stabilities(self, X, sae, rng):
        """Give the stabilities of the live concepts of the control."""
        if self.control == "random":
            data = RowBatches(X, torch.device("cpu"), sae.net_.dtype)
            module = sae.module_
            seeds = rng.randint(np.iinfo(np.int32).max, size=self.n_seeds)
            draws = [covariance_directions(data, module, int(seed)).numpy() for seed in seeds]
            return self._stabilities(draws)
        seed = rng.randint(np.iinfo(np.int32).max)
        rows = shuffled_columns(X, seed) if self.control == "shuffled" else gaussian_rows(X, seed)
        with warnings.catch_warnings():  # of dead concepts, where there are none to find
            warnings.simplefilter("ignore", ConvergenceWarning)
            saes = self._fits(rows, rng)
        stabilities = self._stabilities([sae.components_ for sae in saes])
        live = is_live(saes[0], len(rows))
        return stabilities[live] if live.any() else stabilities

    def _warn_of_few(self):
        n_kept, n = int(self.support_.sum()), len(self.support_)
        if n_kept <= _FEW * n:
            how_many = "None" if not n_kept else f"Only {n_kept}"
            warnings.warn(
                f"{how_many} of the {n} concepts of this {type(self.estimator).__name__} are "
                f"stable over {self.n_seeds} seeds, with a threshold of "
                f"{self.stability_threshold_:.2f}. Fit to more rows or for more epochs, lower "
                "nb_concepts or top_k, or set a lower threshold.",
                ConvergenceWarning,
                stacklevel=5,
            )

    @property
    def _kept(self):
        return np.flatnonzero(self.support_)

    @property
    def stability_(self):
        """Stability of the kept concepts, shape (n_kept,)."""
        return self.stabilities_[self.support_]

    def get_support(self, indices=False):
        """Tell which concepts of ``estimator_`` are kept.

        Parameters
        ----------
        indices : bool, default=False
            Whether to give their numbers rather than a mask.

        Returns
        -------
        ndarray
            Mask of shape (nb_concepts,), or ascending numbers of shape (n_kept,).
        """
        check_is_fitted(self)
        return self._kept if indices else self.support_


def normalized(rows):
    """Give rows with norm one in float64; rows of zeros stay."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def matched_cosines(one, other):
    """Give the cosine of each unit row to its partner in the best one-to-one matching."""
    cosines = one @ other.T
    return cosines[linear_sum_assignment(cosines, maximize=True)]


def largest_cosines(one, other):
    """Give the largest cosine of each unit row to a row of the other dictionary."""
    step = max(1, 2**22 // len(other))
    blocks = (one[i : i + step] @ other.T for i in range(0, len(one), step))
    return np.concatenate([block.max(axis=1) for block in blocks])


def is_live(sae, n_rows):
    """Tell which concepts fired in the last ``n_rows`` training rows."""
    return (sae.module_.samples_since_fired < n_rows).cpu().numpy()


def gaussian_rows(X, seed):
    """Draw as many rows from a Gaussian with the mean and covariance of X.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    seed : int

    Returns
    -------
    ndarray of shape (n_samples, n_features)
        Of the dtype of X.
    """
    dense = X.toarray() if sparse.issparse(X) else np.asarray(X)
    mean = dense.mean(axis=0, dtype=np.float64)
    second = sum(block.T @ block for block in _float64_blocks(dense, mean)) / len(dense)
    variances, axes = np.linalg.eigh(second)
    root = (axes * np.sqrt(np.maximum(variances, 0))).T
    rng, out = np.random.default_rng(seed), np.empty_like(dense)
    for start in range(0, len(dense), 8192):
        block = out[start : start + 8192]
        block[:] = mean + rng.standard_normal(block.shape) @ root
    return out


def _float64_blocks(dense, mean):
    for start in range(0, len(dense), 8192):
        yield dense[start : start + 8192] - mean
