"""What the package exports, what importing it loads, and which way imports point."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sksae

ROOT = Path(sksae.__file__).parent
HEAVY = tuple("transformers overcomplete matplotlib timm cv2 torchvision openai captum".split())


def test_public_names():
    expected = """BaseSAE VanillaSAE TopKSAE BatchTopKSAE JumpReLUSAE GatedSAE MatryoshkaSAE
    Transcoder Crosscoder
    MatchingPursuitSAE ArchetypalSAE
    TransformerActivationExtractor Extractor TopKInputs ConceptPooler KeepRows losses
    metrics datasets interpretation intervention attribution"""
    assert set(expected.split()) <= set(sksae.__all__)
    assert sksae.Extractor is sksae.TransformerActivationExtractor


@pytest.mark.parametrize(
    "name",
    ["sksae", *(f"sksae.{p.parent.name}" for p in ROOT.glob("*/__init__.py"))],
)
def test_all_is_true(name):
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), n))
    for exported in module.__all__:
        assert hasattr(module, exported)


def test_import_is_light():
    code = f"import sys, sksae; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_import_costs_little_beside_torch_and_scikit_learn():
    code = """
import time
start = time.perf_counter(); import torch, sklearn
middle = time.perf_counter(); import sksae
print((time.perf_counter() - start) / (middle - start))
"""
    ratios = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(ratios) <= 1.3


# Each folder with the folders of sksae it may import from.
MAY_IMPORT = {
    "activations": set(),
    "metrics": {"activations", "estimators"},
    "kernels": set(),
    "modules": {"kernels"},
    "losses": {"kernels"},
    "training": {"kernels", "losses", "modules"},
    "estimators": {"activations", "kernels", "losses", "modules", "training"},
    "attribution": {"activations", "estimators", "interpretation", "intervention"},
    "interpretation": {"activations", "estimators", "metrics"},
    "intervention": {"activations", "estimators", "metrics"},
    "datasets": set(),
}
ONLY_IMPORTER = {
    "captum": "attribution",
    "numba": "kernels",
    "overcomplete": "modules",
    "skorch": "training",
    "triton": "kernels",
}


def imports(path):
    """Give (absolute module, relative first part) of each import in a file."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and node.level == len(package) + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((None, name.split(".")[0]) for name in names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    part = relative.parts[0].removesuffix(".py")
    if part in ("__init__", "_sklearn", "_device", "_linear"):
        return
    for absolute, inside in imports(path):
        if absolute in ONLY_IMPORTER:
            assert part == ONLY_IMPORTER[absolute], f"{relative} imports {absolute}"
        if inside and not inside.startswith("_") and inside != part:
            assert inside in MAY_IMPORT[part], f"{relative} imports sksae.{inside}"
