"""Synthetic activations whose concepts are known: one generator per published suite."""

from ._activations import make_activations
from ._korznikov import make_korznikov
from ._oneill import make_oneill
from ._planted import PlantedFeatures
from ._saelens import make_saelens_toy
from ._sharkey import make_sharkey
from ._synth_bench import make_synth_bench

__all__ = [
    "PlantedFeatures",
    "make_activations",
    "make_korznikov",
    "make_oneill",
    "make_saelens_toy",
    "make_sharkey",
    "make_synth_bench",
]
