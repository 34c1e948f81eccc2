"""Torch modules of the sparse autoencoders: overcomplete's classes, mended and completed."""

from ._archetypal import ArchetypalDictionary, ArchetypalModule
from ._base import VECTOR_ENCODERS, Dictionary, SAEModule
from ._controls import FrozenDecoderModule, FrozenEncoderModule, RandomModule, SoftFrozenModule
from ._crosscoder import CrosscoderModule
from ._gated import GatedModule
from ._jumprelu import KERNELS, jump_relu, step
from ._matching_pursuit import MatchingPursuitModule
from ._matryoshka import MatryoshkaModule
from ._overcomplete import load_overcomplete_sae
from ._transcoder import TranscoderModule
from ._variants import BatchTopKModule, JumpReLUModule, TopKModule, VanillaModule

__all__ = [
    "KERNELS",
    "VECTOR_ENCODERS",
    "ArchetypalDictionary",
    "ArchetypalModule",
    "BatchTopKModule",
    "CrosscoderModule",
    "Dictionary",
    "FrozenDecoderModule",
    "FrozenEncoderModule",
    "GatedModule",
    "JumpReLUModule",
    "MatchingPursuitModule",
    "MatryoshkaModule",
    "RandomModule",
    "SAEModule",
    "SoftFrozenModule",
    "TopKModule",
    "TranscoderModule",
    "VanillaModule",
    "jump_relu",
    "load_overcomplete_sae",
    "step",
]
