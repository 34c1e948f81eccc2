"""ShuffledActivations: an SAE fitted to rows that hold no co-occurrence."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.utils import check_random_state

from ._wrapper import SAEWrapper


class ShuffledActivations(SAEWrapper):
    """Control: an SAE fitted to activations whose columns were shuffled apart.

    Each column of ``X`` is permuted over the rows by itself before the SAE is fitted: the
    distribution of each feature stays, what features do together is gone, and with it every
    direction that is not an axis. `transform`, `score` and the like take activations as
    they are. What such an SAE finds, it owes to single features (outlier dimensions, heavy
    tails), or to nothing.

    Parameters
    ----------
    estimator : BaseSAE
        The SAE; a clone is fitted.
    random_state : int, RandomState instance or None, default=None
        Of the shuffling, and of the SAE where it has none of its own. An int makes a fit
        repeatable.

    Attributes
    ----------
    estimator_ : BaseSAE
        The SAE fitted to shuffled columns.
    components_ : ndarray of shape (nb_concepts, n_features)
        Its dictionary.
    decoder_bias_ : ndarray of shape (n_features,)
        Its decoder bias.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str
        Where ``X`` had names.

    See Also
    --------
    FrozenDecoderSAE : Activations as they are, directions by chance.

    Notes
    -----
    It wraps the SAE, where a step in front of it would have to do one thing in fit and
    another in transform. In a pipeline it stands in the SAE's place. Shuffled rows belong
    to no text, so that a ``validation_fraction`` of the SAE holds out rows.

    Examples
    --------
    Two features that always have the same value lose that, so the direction that they share
    explains less than in the data as they are.

    >>> import numpy as np
    >>> from sksae import ShuffledActivations, TopKSAE
    >>> X = np.random.default_rng(0).exponential(size=(500, 1)) @ np.ones((1, 2))
    >>> sae = TopKSAE(2, top_k=1, batch_size=50, random_state=0)
    >>> shuffled = ShuffledActivations(sae, random_state=0)
    >>> bool(shuffled.fit(X).score(X) < sae.fit(X).score(X))
    True
    """

    _is_control = True

    def __init__(self, estimator, *, random_state=None):
        self.estimator = estimator
        self.random_state = random_state

    def _fit_estimator(self, X, rows):
        rng = check_random_state(self.random_state)
        shuffled = shuffled_columns(X, rng)
        own = self.random_state is None or self.estimator.random_state is not None
        seed = None if own else rng.randint(np.iinfo(np.int32).max)
        self.estimator_ = self._clone(seed).fit(shuffled)


def shuffled_columns(X, random_state):
    """Give a dense copy whose columns are permuted over the rows, each by itself.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    random_state : int, RandomState instance or None

    Returns
    -------
    ndarray of shape (n_samples, n_features)
    """
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    dense = X.toarray() if sparse.issparse(X) else np.asarray(X)
    return np.random.default_rng(seed).permuted(dense, axis=0)
