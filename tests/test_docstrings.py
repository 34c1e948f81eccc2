"""Docstrings follow numpydoc; those that users meet describe all parameters and returns."""

import importlib
import inspect
import pkgutil
from enum import Enum

import pytest
from numpydoc.validate import validate

import sksae

# numpydoc's codes: sections in order and known, a summary that is there and ends in a stop,
# parameters those of the signature, with types.
EVERYWHERE = {"GL06", "GL07", "GL08", "SS02", "SS03", "PR02", "PR03", "PR04"}
FOR_USERS = EVERYWHERE | {"PR01", "RT01"}
INSIDE = ("sksae.kernels", "sksae.modules", "sksae.training")


def public_objects():
    """Name every public class, method and function of the package's public modules."""
    modules = [sksae] + [
        importlib.import_module(f"sksae.{m.name}")
        for m in pkgutil.iter_modules(sksae.__path__)
        if not m.name.startswith("_")
    ]
    for module in modules:
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            if name[0] == "_" or not getattr(thing, "__module__", "").startswith("sksae"):
                continue
            described = inspect.isclass(thing) and not issubclass(thing, Enum)
            if not (described or inspect.isfunction(thing)):
                continue
            path = f"{thing.__module__}.{thing.__qualname__}"
            yield path
            if inspect.isclass(thing):
                functions = inspect.getmembers(thing, inspect.isfunction)
                yield from (f"{path}.{m}" for m, _ in functions if m in vars(thing) and m[0] != "_")


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_docstring(name):
    checked = EVERYWHERE if name.startswith(INSIDE) else FOR_USERS
    errors = [f"{code}: {text}" for code, text in validate(name)["errors"] if code in checked]
    # A variant refers to BaseSAE for the parameters that **shared stands for.
    shared = set(inspect.signature(sksae.BaseSAE).parameters)
    thing = getattr(sksae, name.split(".")[-1], object)
    if inspect.isclass(thing) and issubclass(thing, sksae.BaseSAE):
        errors = [e for e in errors if not any(f"'{p}'" in e for p in shared | {"**shared"})]
    assert not errors
