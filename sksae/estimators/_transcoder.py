"""Transcoder: sparse codes of one layer's activations that predict another's."""

from __future__ import annotations

import torch
from sklearn.utils.validation import check_is_fitted

from .._sklearn import fit_context
from ..activations._rows import rows_of, with_rows
from ..training._data import random_rows
from ._base import BaseSAE, _array
from ._coding import explained_share
from ._input import check_input, check_target
from ._nets import units_of
from ._parameters import STEPS, TOP_K, check_top_k

_MAP_ROWS = 16384
_RIDGE = 1e-3
import os
MODE = os.environ.get("TMODE", "ls")
MIX = float(os.environ.get("TMIX", "0"))
SKIPLS = bool(os.environ.get("TSKIP"))


class Transcoder(BaseSAE):
    """doc."""

    _parameter_constraints = {
        **BaseSAE._parameter_constraints,
        "top_k": TOP_K,
        "k_anneal": STEPS,
        "skip": ["boolean"],
    }
    _own_structure = ("skip",)
    _reconstructs_input = False

    def __init__(self, nb_concepts=1024, *, top_k=32, skip=False, k_anneal=0.0, **shared):
        super().__init__(nb_concepts, **shared)
        self.top_k = top_k
        self.skip = skip
        self.k_anneal = k_anneal

    def _check_parameters(self):
        check_top_k(self)

    def _module(self):
        from ..modules import TranscoderModule

        own = {"top_k": self.top_k, "skip": bool(self.skip), "n_outputs": self.n_outputs_}
        return TranscoderModule, own

    def _check_target(self, X, y, rows, *, reset):
        y_rows = rows_of(y)
        one_d = getattr(y, "ndim", None) == 1
        y = check_target(self, y, X.shape[0], None if reset else self.n_outputs_)
        if reset:
            self.n_outputs_ = y.shape[1]
        return y

    def _set_units(self, module, data):
        super()._set_units(module, data)
        module.set_output_units(*units_of(data.targets, self.outlier_ratio))
        if module.has_linear_encoder:
            sample = random_rows(len(data), _MAP_ROWS)
            x, y = (t.double() for t in data.take_pair(sample))
            u = module.pull_in(x / module.input_scale) - module.center
            v = module.pull_in_target(y / module.output_scale) - module.target_center
            d = u.shape[1]
            c = u.T @ u / len(u)
            xy = u.T @ v / len(u)
            ls = torch.linalg.solve(c + _RIDGE * torch.eye(d, dtype=c.dtype) * c.trace() / d, xy)
            m = ls if MODE == "ls" else xy
            if MODE != "random":
                w0 = module.linear_encoder.weight.clone()
                module.aim_encoder(m.to(module.center), self.encoder_init_norm)
                w = module.linear_encoder.weight.data
                w = (1 - MIX) * w + MIX * w0
                module.linear_encoder.weight.data.copy_(self.encoder_init_norm * w / w.norm(dim=1, keepdim=True))
            if SKIPLS and self.skip:
                module.skip_weight.data.copy_(ls.T)

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        return self._fit(X, y)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        return self._partial_fit(X, y)

    def score(self, X, y=None):
        check_is_fitted(self)
        X = check_input(self, X, reset=False)
        y = check_target(self, y, X.shape[0], self.n_outputs_)
        coder, data = self._coder(X)
        return explained_share(coder, data, self._coder(y)[1])
