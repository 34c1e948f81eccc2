"""The concept metrics of interpreto under their names, with what they compute here.

Each takes a fitted SAE, or a pipeline that holds exactly one, where interpreto takes a
concept explainer; interpreto's files are ``concepts/metrics/*_metrics.py`` (version 0.5).
"""

from __future__ import annotations

from enum import Enum
from itertools import combinations

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator

from ._checks import check_matrix, check_number, check_pair, dense_blocks
from ._codes import n_active
from ._cosines import check_width, matched_mean, max_cosine, unit_rows
from ._observed import Observed, split_at_sae

_BLOCK_COLUMNS = 64


class MSE:
    """Mean squared error of the reconstruction. Lower is better.

    ``mean (A - A_hat)^2`` over all entries. interpreto's ``MSE`` is the Frobenius norm of
    ``A - A_hat``, neither squared nor a mean, which grows with the number of rows:
    ``sqrt(n_samples * n_features * mse)``.

    Parameters
    ----------
    concept_explainer : fitted SAE, or fitted pipeline that holds exactly one

    See Also
    --------
    fvu : Does not depend on the units of the activations.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(256, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(8, top_k=2, batch_size=64, random_state=0).fit(X)
    >>> error = MSE(sae).compute(X)
    >>> bool(np.isclose(error, np.mean((X - sae.inverse_transform(sae.transform(X))) ** 2)))
    True
    """

    def __init__(self, concept_explainer):
        self.concept_explainer = concept_explainer

    def compute(self, latent_activations) -> float:
        """Compute the metric.

        Parameters
        ----------
        latent_activations : object
            What ``concept_explainer`` takes: activations of shape (n_samples, n_features),
            or texts for a pipeline that starts with an extractor.

        Returns
        -------
        float
            At least 0, in squared units of the activations.
        """
        X, X_hat = _reconstructed(self, latent_activations)
        error = sum(float(np.square(x - x_hat).sum()) for x, x_hat in dense_blocks(X, X_hat))
        return error / (X.shape[0] * X.shape[1])


class FID:
    """Distance between the distributions of activations and reconstructions. Lower is better.

    The 1-Wasserstein distance between the values of a feature before and after, averaged
    over the features: ``mean |sort(A_j) - sort(A_hat_j)|``. This is what interpreto computes
    under this name (after Fel et al. (2023), arXiv:2306.07304); it is not the Fréchet
    inception distance, and it sees neither which sample has which value nor how features
    go together.

    Parameters
    ----------
    concept_explainer : fitted SAE, or fitted pipeline that holds exactly one

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(256, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(8, top_k=2, batch_size=64, random_state=0).fit(X)
    >>> X_hat = sae.inverse_transform(sae.transform(X))
    >>> bool(np.isclose(FID(sae).compute(X), np.abs(np.sort(X, 0) - np.sort(X_hat, 0)).mean()))
    True
    """

    def __init__(self, concept_explainer):
        self.concept_explainer = concept_explainer

    def compute(self, latent_activations) -> float:
        """Compute the metric.

        Parameters
        ----------
        latent_activations : object
            What ``concept_explainer`` takes: activations of shape (n_samples, n_features),
            or texts for a pipeline that starts with an extractor.

        Returns
        -------
        float
            At least 0, in units of the activations.
        """
        X, X_hat = _reconstructed(self, latent_activations)
        total = 0.0
        for start in range(0, X.shape[1], _BLOCK_COLUMNS):
            columns = slice(start, start + _BLOCK_COLUMNS)
            before, after = (np.sort(_columns(M, columns), axis=0) for M in (X, X_hat))
            total += float(np.abs(before - after).sum())
        return total / (X.shape[0] * X.shape[1])


class Sparsity:
    """Share of the codes that are active. Lower is sparser.

    ``mean (|c| > epsilon)`` over all samples and concepts: the mean L0 divided by
    nb_concepts. The same number as in interpreto, whose documentation gives the formula of a
    sum.

    Parameters
    ----------
    concept_explainer : fitted SAE, or fitted pipeline that holds exactly one
    epsilon : float, default=0.0
        Largest absolute code that does not count as active, in units of the codes.

    See Also
    --------
    l0 : The mean number of active concepts.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(256, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(8, top_k=2, batch_size=64, random_state=0).fit(X)
    >>> round(Sparsity(sae).compute(X), 2)  # 2 of 8 concepts in most rows
    0.25
    """

    def __init__(self, concept_explainer, epsilon=0.0):
        self.concept_explainer = concept_explainer
        self.epsilon = epsilon

    def compute(self, latent_activations) -> float:
        """Compute the metric.

        Parameters
        ----------
        latent_activations : object
            What ``concept_explainer`` takes: activations of shape (n_samples, n_features),
            or texts for a pipeline that starts with an extractor.

        Returns
        -------
        float
            Between 0 and 1.
        """
        counts, n_samples = self._counts(latent_activations)
        return float(counts.sum() / (n_samples * len(counts)))

    def _counts(self, latent_activations):
        """Give the number of samples in which each concept is active, and of samples."""
        name = type(self).__name__
        epsilon = check_number(self.epsilon, "epsilon", name)
        if epsilon < 0:
            raise ValueError(f"epsilon of {name} must be at least 0. Got {self.epsilon}.")
        codes = Observed(self.concept_explainer, latent_activations, name).codes
        codes = check_matrix(codes, "The codes", name)
        return n_active(abs(codes) > epsilon, axis=0), codes.shape[0]


class SparsityRatio(Sparsity):
    """Share of the concepts in use that are active in a sample. Lower is sparser.

    The mean number of active concepts divided by the number of concepts that are active in
    at least one sample. interpreto divides `Sparsity`, a share already, by nb_concepts once
    more. Dividing once, by all concepts, is `Sparsity`; dividing by those in use keeps dead
    concepts from making a dictionary look sparser than it is.

    Parameters
    ----------
    concept_explainer : fitted SAE, or fitted pipeline that holds exactly one
    epsilon : float, default=0.0
        Largest absolute code that does not count as active, in units of the codes.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(256, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(8, top_k=2, batch_size=64, random_state=0).fit(X)
    >>> round(SparsityRatio(sae).compute(X), 2)  # every concept is in use
    0.25
    """

    def compute(self, latent_activations) -> float:
        """Compute the metric.

        Parameters
        ----------
        latent_activations : object
            What ``concept_explainer`` takes: activations of shape (n_samples, n_features),
            or texts for a pipeline that starts with an extractor.

        Returns
        -------
        float
            Between 0 and 1; at least `Sparsity`. 0 if no concept is active.
        """
        counts, n_samples = self._counts(latent_activations)
        in_use = np.count_nonzero(counts)
        return float(counts.sum() / (n_samples * in_use)) if in_use else 0.0


class ConceptMatchingAlgorithm(Enum):
    """How `Stability` matches the concepts of two dictionaries.

    COSINE_HUNGARIAN matches one to one, so that the mean cosine is largest. COSINE_MAXIMUM
    takes for each concept of the first dictionary the best of the second, which several may
    share; it depends on the order of the two.
    """

    COSINE_HUNGARIAN = "cosine_hungarian"
    COSINE_MAXIMUM = "cosine_maximum"


class Stability:
    """Agreement of the dictionaries of several fits. Higher is better.

    The mean over all pairs of the mean cosine of matched concepts, signed, as in interpreto
    (after Fel et al. (2023), arXiv:2306.07304). With the default matching it is `stability`.

    Parameters
    ----------
    *concept_explainers : fitted SAEs, fitted pipelines, arrays or tensors
        At least one, and kinds may be mixed; arrays have shape (nb_concepts, n_features). A
        single one is compared with itself.
    matching_algorithm : ConceptMatchingAlgorithm or str
        "cosine_hungarian" (the default) or "cosine_maximum".

    Raises
    ------
    ValueError
        If there is none, if the dictionaries differ in shape, or for another algorithm.

    See Also
    --------
    pw_mcc : The same up to the signs of the concepts.

    Examples
    --------
    >>> Stability([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]).compute()
    1.0
    """

    def __init__(
        self,
        *concept_explainers,
        matching_algorithm=ConceptMatchingAlgorithm.COSINE_HUNGARIAN,
    ):
        if not concept_explainers:
            raise ValueError("Stability needs at least one fitted SAE or dictionary. Got none.")
        self.dictionaries = [_dictionary(e, i) for i, e in enumerate(concept_explainers)]
        for i, dictionary in enumerate(self.dictionaries[1:], start=1):
            _check_shape(self.dictionaries[0], dictionary, i)
        self.matching_algorithm = ConceptMatchingAlgorithm(matching_algorithm)

    def compute(self) -> float:
        """Compute the metric.

        Returns
        -------
        float
            Between -1 and 1; 1 for the same concepts in any order.
        """
        dictionaries = self.dictionaries if len(self.dictionaries) > 1 else self.dictionaries * 2
        return float(np.mean([self._agreement(a, b) for a, b in combinations(dictionaries, 2)]))

    def _agreement(self, a, b):
        if self.matching_algorithm is ConceptMatchingAlgorithm.COSINE_HUNGARIAN:
            return matched_mean(a, b, signed=True)
        return max_cosine(a, b).mean()


def _reconstructed(metric, latent_activations):
    name = type(metric).__name__
    observed = Observed(metric.concept_explainer, latent_activations, name)
    names = ("The activations", "The reconstructions")
    return check_pair(observed.activations, observed.reconstruction, names, name)


def _columns(X, columns):
    part = X[:, columns]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)


def _dictionary(explainer, position):
    if isinstance(explainer, BaseEstimator):
        explainer = split_at_sae(explainer, "Stability")[1].components_
    return unit_rows(explainer, f"Dictionary {position}", "Stability")


def _check_shape(first, other, position):
    check_width(first, other, ("Dictionary 0", f"Dictionary {position}"), "Stability")
    if first.shape != other.shape:
        raise ValueError(
            f"The dictionaries of Stability must have as many concepts: dictionary 0 has "
            f"{len(first)}, dictionary {position} has {len(other)}. mcc compares different sizes."
        )
