"""Torch modules of the sparse autoencoders: overcomplete's classes, mended and completed."""

from ._base import VECTOR_ENCODERS, Dictionary, SAEModule
from ._controls import FrozenDecoderModule, FrozenEncoderModule, RandomModule, SoftFrozenModule
from ._gated import GatedModule
from ._jumprelu import KERNELS, jump_relu, step
from ._matryoshka import MatryoshkaModule
from ._overcomplete import load_overcomplete_sae
from ._variants import BatchTopKModule, JumpReLUModule, TopKModule, VanillaModule

__all__ = [
    "KERNELS",
    "VECTOR_ENCODERS",
    "BatchTopKModule",
    "Dictionary",
    "FrozenDecoderModule",
    "FrozenEncoderModule",
    "GatedModule",
    "JumpReLUModule",
    "MatryoshkaModule",
    "RandomModule",
    "SAEModule",
    "SoftFrozenModule",
    "TopKModule",
    "VanillaModule",
    "jump_relu",
    "load_overcomplete_sae",
    "step",
]
