"""Load ``overcomplete.sae`` without overcomplete's own top-level imports.

``import overcomplete`` also imports its plotting and vision parts: five seconds, a
matplotlib older than 3.9 and libGL. Only ``overcomplete.sae`` is needed here, so the
package is entered in ``sys.modules`` as it is on disk, with its ``__init__`` put off
until somebody asks for a name that only it defines.
"""

import importlib
import importlib.util
import sys
import types

_PACKAGE = "overcomplete"


class _DeferredPackage(types.ModuleType):
    """The overcomplete package, its ``__init__`` run at the first name it has to supply."""

    def __getattr__(self, name):
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module '{_PACKAGE}' has no attribute '{name}'")
        cause = self._run_init()
        for namespace in (self, sys.modules.get(f"{_PACKAGE}.sae")):
            if namespace is not None and name in vars(namespace):
                return vars(namespace)[name]
        raise AttributeError(f"module '{_PACKAGE}' has no attribute '{name}'") from cause

    def _run_init(self):
        """Run the package's ``__init__`` once; give the exception that it raised, if any."""
        if "_init_error" not in vars(self):
            self._init_error = None
            try:
                self.__spec__.loader.exec_module(self)
            except Exception as exc:  # its optional parts may not import on this machine
                self._init_error = exc
        return self._init_error


def load_overcomplete_sae():
    """Import ``overcomplete.sae``, sharing its classes with any other import of it.

    Returns
    -------
    module
        ``overcomplete.sae``.
    """
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None:
            raise ImportError(
                "Missing dependency 'overcomplete', needed by sksae.modules. "
                "Try: pip install 'overcomplete==0.3.*'."
            )
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _DeferredPackage
        sys.modules[_PACKAGE] = package
    sae = importlib.import_module(f"{_PACKAGE}.sae")
    # An earlier failed import may have left the submodule without its place in the package.
    sys.modules[_PACKAGE].sae = sae
    return sae


def rebuild_estimator(cls):
    """Make an empty estimator while unpickling.

    Living here, it makes overcomplete importable before the estimator's state, which
    may name overcomplete's classes, is read.
    """
    return cls.__new__(cls)


overcomplete_sae = load_overcomplete_sae()
