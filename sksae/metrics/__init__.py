"""Metrics of codes and reconstructions: arrays or CSR in, floats out."""

from ._basic import dead_fraction, explained_variance, l0

__all__ = ["dead_fraction", "explained_variance", "l0"]
