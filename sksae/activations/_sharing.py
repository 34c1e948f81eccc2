"""Estimators that hold a model: their clones share it, and it is shown briefly."""

from __future__ import annotations

from copy import deepcopy

from sklearn.base import BaseEstimator, clone

from . import _loading as loading


class SharesModel(BaseEstimator):
    """Base class of estimators whose clones share what ``_shared_by_clones`` names."""

    _shared_by_clones: tuple[str, ...] = ("model", "tokenizer")

    def get_params(self, deep=True):
        """Get the parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include those of contained estimators.

        Returns
        -------
        params : dict
            Parameter names and values.
        """
        params = super().get_params(deep=deep)
        if loading.asked_by_printer():
            return {name: loading.brief(value) for name, value in params.items()}
        return params

    def _get_params_html(self, *args, **kwargs):
        params = super()._get_params_html(*args, **kwargs)
        for name in self._shared_by_clones:
            short = loading.brief(params.get(name))
            if short is not params.get(name):
                params[name] = str(short)
        return params

    def __sklearn_clone__(self):
        params = self.get_params(deep=False)
        for name in set(params) - set(self._shared_by_clones):
            params[name] = clone(params[name], safe=False)
        copy = type(self)(**params)
        for name in ("_sklearn_output_config", "_metadata_request"):
            if name in self.__dict__:
                setattr(copy, name, deepcopy(self.__dict__[name]))
        if "_skl_callbacks" in self.__dict__:
            copy._skl_callbacks = self._skl_callbacks
        return copy
