"""Insertion and deletion curves: whether the logit follows the scores."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid
from sklearn.utils import check_random_state

from ..activations._layers import evaluating
from ..intervention._site import Parts, Site
from ._codes_path import Case, CaseMaker, LogitOfCodes
from ._output import GRANULARITIES, runs
from ._output_result import OutputAttribution
from ._readout import Readout, head_of, refuse_samples

_CURVES = ("deletion", "insertion", "deletion_random", "insertion_random")


@dataclass(frozen=True, repr=False)
class InsertionDeletion:
    """How a logit moves as concepts are turned off or on, in the order of their scores.

    Parameters
    ----------
    fractions : ndarray of float64, shape (n_points,)
        Share of the active concepts that are turned off (deletion) or on (insertion).
    deletion : ndarray of float64, shape (n_texts, n_points)
        The target logit as concepts are turned off, the largest score first. NaN for a text
        without active concepts.
    insertion : ndarray of float64, shape (n_texts, n_points)
        The target logit as they are turned on, the largest score first, from all off.
    deletion_random, insertion_random : ndarray of float64, shape (n_texts, n_points)
        The same in random order, the mean over some orders.

    See Also
    --------
    insertion_deletion : Makes it.
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    deletion_random: np.ndarray
    insertion_random: np.ndarray

    @property
    def areas(self) -> dict[str, np.ndarray]:
        """Area under each curve, shape (n_texts,): the mean logit over the fractions."""
        return {name: trapezoid(getattr(self, name), self.fractions) for name in _CURVES}

    def to_frame(self) -> Any:
        """Give the mean curves over the texts as a table.

        Returns
        -------
        table : pandas.DataFrame
            A line per fraction; columns deletion, insertion, deletion_random and
            insertion_random, in logits.
        """
        import pandas as pd

        known = ~np.isnan(self.deletion[:, 0])
        curves = {name: getattr(self, name)[known].mean(axis=0) for name in _CURVES}
        return pd.DataFrame(curves, index=pd.Index(self.fractions, name="fraction"))

    def to_dict(self) -> dict[str, float]:
        """Give the mean area of each curve over the texts.

        Returns
        -------
        dict of str to float
        """
        return {name: float(np.nanmean(area)) for name, area in self.areas.items()}

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={area:.4g}" for name, area in self.to_dict().items())
        return f"InsertionDeletion({numbers})"


def insertion_deletion(
    pipe_or_sae,
    inputs,
    attribution,
    *,
    n_points=11,
    n_random=3,
    model=None,
    layer=None,
    tokenizer=None,
    batch_size=None,
    random_state=None,
    verbose=0,
):
    """Test scores on the model: turn concepts off, and on, from the largest score down.

    If the scores are right, the logit falls early when the concepts with large scores are
    turned off first (deletion), and rises early when they are turned on first (insertion).
    Random orders of the same active concepts tell how early it would anyway.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        As in `concept_output_attribution`.
    inputs : sequence of str, or of lists of str
        The texts of the attribution.
    attribution : OutputAttribution
        The scores, with the targets and the settings they were made with.
    n_points : int, default=11
        Number of points of a curve, at equal distances from no concept to all of them.
    n_random : int, default=3
        Number of random orders of each text.
    model : str, path or torch.nn.Module, default=None
        As in `concept_output_attribution`.
    layer : str or int, default=None
        As in `concept_output_attribution`.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        As in `concept_output_attribution`.
    batch_size : int, default=None
        Versions of a text run at once. None takes the extractor's, or 32.
    random_state : int, RandomState instance or None, default=None
        Makes the random orders repeatable.
    verbose : int, default=0
        1 shows a progress bar over the texts.

    Returns
    -------
    InsertionDeletion
        The curves of each text, their areas, the random ones beside them.

    Raises
    ------
    TypeError
        If ``attribution`` is none.
    ValueError
        If it was made of other texts.

    See Also
    --------
    concept_output_attribution : Makes the scores.

    Notes
    -----
    The causal metric of [1]_, with concepts instead of pixels and the logit instead of the
    probability. The lower the area under the deletion curve and the higher that under the
    insertion curve, the better; only differences to the random ones count, as the level is
    that of the logit. Half of the codes turned off is a state that the model never meets, so
    that the middle of a curve says less than its ends.

    With ``per_position`` scores, single codes are turned off; without, all codes of a concept
    in the text. Off means the attribution's baseline.

    References
    ----------
    .. [1] Petsiuk et al. (2018), "RISE: Randomized Input Sampling for Explanation of
       Black-box Models", arXiv:1806.07421, section 4.2, "Causal metrics for explanations".
    """
    parts = Parts.of(pipe_or_sae, "insertion_deletion")
    if not isinstance(attribution, OutputAttribution):
        raise TypeError(
            "attribution must be what concept_output_attribution gives. Got "
            f"{type(attribution).__name__} instead."
        )
    for name, value, least in (("n_points", n_points, 2), ("n_random", n_random, 1)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}. Got {value!r}.")
    known = attribution.settings
    refuse_samples(parts, known["granularity"])
    site = Site(
        parts,
        inputs,
        head_of(parts, model),
        GRANULARITIES,
        model=model,
        layer=layer,
        tokenizer=tokenizer,
        batch_size=batch_size,
        **{k: known[k] for k in ("granularity", "aggregation", "skip_first", "max_length")},
    )
    _check_texts(site, attribution)
    rng = np.random.RandomState() if random_state is None else check_random_state(random_state)
    with evaluating(site.model):
        readout = Readout(site, None, known["position"])
        readout.targets = attribution.target
        maker = CaseMaker(
            readout,
            attribution.concepts,
            known["baseline"],
            known["keep_error"],
            known["per_position"],
        )
        curves = _Curves(attribution, int(n_points), int(n_random), rng)
        for cases in runs(maker, verbose, "insertion and deletion"):
            for case in cases:
                curves.add(case, LogitOfCodes(readout, [case], maker.directions))
    return InsertionDeletion(curves.fractions, *curves.found)


def _check_texts(site: Site, attribution: OutputAttribution) -> None:
    rows = attribution.rows
    same = site.n_texts == len(attribution.target) and site.rows.texts == rows.texts
    if same and attribution.per_position:
        same = np.array_equal(site.rows.start, rows.start)
    if not same:
        raise ValueError(
            "inputs are not the texts that the attribution was made of. Pass the same texts, "
            "in the same order, and the same pipeline."
        )


class _Curves:
    """Takes the curves of one text after the other."""

    def __init__(
        self, attribution: OutputAttribution, n_points: int, n_random: int, rng: Any
    ) -> None:
        self.attribution, self.n_random, self.rng = attribution, n_random, rng
        self.fractions = np.linspace(0, 1, n_points)
        self.found = np.full((4, len(attribution.target), n_points), np.nan)

    def add(self, case: Case, logit: LogitOfCodes) -> None:
        """Run one text with its concepts off and on."""
        n = case.n_switches
        if not n:
            return
        orders = [np.argsort(-self._scores(case), kind="stable")]
        orders += [self.rng.permutation(n) for _ in range(self.n_random)]
        chosen = np.stack([self._chosen(order) for order in orders])  # (orders, points, n)
        settings = np.stack([1 - chosen, chosen])  # off and on
        logits = self._run(logit, settings.reshape(-1, n)).reshape(2, len(orders), -1)
        self.found[:2, case.text] = logits[:, 0]
        self.found[2:, case.text] = logits[:, 1:].mean(axis=1)

    def _scores(self, case: Case) -> np.ndarray:
        """Look up the score of each switch."""
        per_position = self.attribution.per_position
        first, n_rows = (case.first_row, case.n_rows) if per_position else (case.text, 1)
        table = self.attribution.scores[first : first + n_rows].toarray()
        rows = case.entry_rows if per_position else 0
        scores = np.zeros(case.n_switches)
        scores[case.switch.cpu().numpy()] = table[rows, case.columns.cpu().numpy()]
        return scores

    def _chosen(self, order: np.ndarray) -> np.ndarray:
        """Mark the first ones of an order, as many as each fraction says."""
        rank = np.argsort(order)
        counts = np.round(self.fractions * len(order))
        return rank[None] < counts[:, None]

    @staticmethod
    def _run(logit: LogitOfCodes, settings: np.ndarray) -> np.ndarray:
        size = logit.readout.rows_at_once(len(logit.cases[0].ids))
        parts = torch.as_tensor(settings).to(logit.directions).split(size)
        return np.concatenate([logit(part).double().cpu().numpy() for part in parts])
