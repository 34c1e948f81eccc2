"""The sets of ``recovery.py``: their data, what is fitted to them, and what was published."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sksae
from sksae import datasets

# Variants and controls, as far as this version of sksae has them.
NAMES = (
    "TopKSAE",
    "BatchTopKSAE",
    "MatryoshkaSAE",
    "JumpReLUSAE",
    "GatedSAE",
    "VanillaSAE",
    "MatchingPursuitSAE",
    "ArchetypalSAE",
    "FrozenDecoderSAE",
    "SoftFrozenSAE",
    "FrozenEncoderSAE",
)
# The widths 128, 512 and 2,048 of 4,096 that the paper's Matryoshka SAEs have.
PAPER_PREFIXES = {"prefixes": [1 / 32, 1 / 8, 1 / 2, 1.0]}


@dataclass(frozen=True)
class Case:
    """Data with known features, and what is fitted to it.

    Attributes
    ----------
    source : callable
        ``source(n_samples=None, random_state=seed)`` gives `sksae.datasets.PlantedFeatures`.
    width : int
        Concepts of the SAEs.
    budgets : tuple of int
        Numbers of active concepts: ``top_k`` or ``target_l0``.
    n_train, n_test : int
        Rows.
    names : tuple of str
        Variants.
    params : dict
        Parameters of the estimators, where not the defaults.
    more : dict
        For some variants, a list of further parameters to fit with.
    published : tuple of str
        Lines to print below the table.
    on_device : bool
        Whether rows are drawn on the device that trains.
    """

    source: Callable[..., datasets.PlantedFeatures]
    width: int
    budgets: tuple[int, ...]
    n_train: int
    n_test: int = 20_000
    names: tuple[str, ...] = NAMES
    params: dict[str, Any] = field(default_factory=dict)
    more: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    published: tuple[str, ...] = ()
    on_device: bool = False

    def fits(self, names=None, budgets=None):
        """Give ``(name, budget, parameters)`` of each SAE to fit."""
        for budget in budgets or self.budgets:
            for name in names or self.names:
                if hasattr(sksae, name):
                    for own in [{}, *self.more.get(name, [])]:
                        yield name, budget, own


def budget_of(name, budget):
    """Give the parameter that limits the active concepts of a variant, if it has one."""
    known = inspect.signature(getattr(sksae, name)).parameters
    wanted = next((p for p in ("top_k", "target_l0") if p in known), None)
    return {} if wanted is None else {wanted: budget}


_KORZNIKOV = (
    "Published (arXiv:2602.14111), 3,200 features in 100 dimensions, 20 active, found at 0.8:",
    "constant: TopK 99.9 %; BatchTopK and JumpReLU 3 of 3,200, EV 0.67; Matryoshka 0.03 %",
    "variable: TopK the best, at most 43 %; BatchTopK 9 %, JumpReLU 7 %, EV 0.71",
)
_SYNTH = (
    "Published (SAELens, raw results of SynthSAEBench-16k: 16,384 features in 768 dimensions,",
    "34 active, SAEs of 4,096 concepts, 200 M rows):",
    "L0 25: F1, MCC, uniqueness, EV | L0 20: F1, MCC, uniqueness, EV",
    "BatchTopK    .7316 .7574 .9837 .7923 | .8183 .7526 .9760 .7889",
    "Matryoshka   .8793 .7927 .9987 .7792 | .8601 .7455 .9874 .7699",
    "MatchPursuit .4464 .6930 .8281 .8351 | .4439 .6748 .7552 .8267",
    "Standard L1  .5562 .6039 .8976 .7654 | .5777 .5834 .8528 .7501",
    "JumpReLU     .7317 .7527 .9885 .7951 | .8241 .7434 .9781 .7906",
)

CASES = {
    "korznikov50": Case(
        partial(datasets.make_korznikov, n_features=50, nb_concepts=400, n_active=8),
        width=400,
        budgets=(8,),
        n_train=240_000,
        published=("A plain TopK loop found 96.7 % after 2.4 M rows at its best rate.",),
        on_device=True,
    ),
    "korznikov100": Case(
        datasets.make_korznikov,
        width=3200,
        budgets=(20,),
        n_train=500_000,
        names=NAMES[:4],
        published=_KORZNIKOV,
        on_device=True,
    ),
    "korznikov100-variable": Case(
        partial(datasets.make_korznikov, law="variable"),
        width=3200,
        budgets=(20,),
        n_train=500_000,
        names=NAMES[:4],
        published=_KORZNIKOV,
        on_device=True,
    ),
    # A sixteenth of the published world's features in a sixth of its dimensions has 7.2 active
    # features instead of 34.5: budgets of 4 and 5 are to it what 20 and 25 are to the other.
    "synth": Case(
        datasets.make_synth_bench,
        width=256,
        budgets=(4, 5),
        n_train=200_000,
        more={"MatryoshkaSAE": [PAPER_PREFIXES]},
        published=_SYNTH,
    ),
    # A quarter of the features in a third of the dimensions: 16 are active, so that budgets of 9
    # and 12 are to it what 20 and 25 are to the published one.
    "synth-quarter": Case(
        partial(datasets.make_synth_bench, n_features=256, nb_concepts=4096, n_trees=32),
        width=1024,
        budgets=(9, 12),
        n_train=500_000,
        names=NAMES[:4],
        params={"nb_epochs": 10},
        published=_SYNTH,
    ),
    # The budgets of the published table in the reduced world, three times what is active there.
    "synth-dense": Case(
        datasets.make_synth_bench,
        width=256,
        budgets=(20, 25),
        n_train=200_000,
        more={"MatryoshkaSAE": [PAPER_PREFIXES]},
        published=_SYNTH,
    ),
    "synth-full": Case(
        partial(datasets.make_synth_bench, n_features=768, nb_concepts=16_384, n_trees=128),
        width=4096,
        budgets=(20, 25),
        n_train=10_000_000,
        n_test=500_000,
        more={"MatryoshkaSAE": [PAPER_PREFIXES]},
        published=_SYNTH,
        on_device=True,
    ),
    "sharkey": Case(
        datasets.make_sharkey,
        width=512,
        budgets=(1,),
        n_train=200_000,
        names=NAMES[:6],
        published=("Published re-implementations: MMCS 0.96 with the best penalty.",),
    ),
    "saelens-docs": Case(
        datasets.make_saelens_toy,
        width=16,
        budgets=(4,),
        n_train=50_000,
    ),
    "oneill": Case(
        datasets.make_oneill,
        width=16,
        budgets=(3,),
        n_train=1024,
        params={"nb_epochs": 625, "batch_size": 32},
        published=("Settings of arXiv:2411.13117: 1,024 rows, 20,000 steps of 32 rows.",),
    ),
}
