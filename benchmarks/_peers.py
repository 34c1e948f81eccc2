"""Where the other libraries live: a virtual environment each, and what is noted of a run.

Imported in every library's environment; needs nothing that is not in Python.
"""

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "sksae-benchmarks"

PEERS = {
    "overcomplete": ["torch==2.14.1", "torchvision==0.29.1", "overcomplete==0.3.0"],
    "interpreto": ["torch==2.14.1", "interpreto==0.5.2", "ipython"],
    "saelens": ["torch==2.14.1", "sae-lens==6.54.12"],
    "dictionary_learning": ["torch==2.14.1", "dictionary-learning==0.1.0"],
    "sparsify": ["torch==2.14.1", "eai-sparsify==1.3.3"],
}

DISTRIBUTIONS = {
    "sksae": "sksae",
    "overcomplete": "overcomplete",
    "interpreto": "interpreto",
    "saelens": "sae-lens",
    "dictionary_learning": "dictionary-learning",
    "sparsify": "eai-sparsify",
    "sklearn": "scikit-learn",
}

MODULES = {"saelens": "sae_lens"}


def interpreter(library, envs):
    """Give the Python that has a library; install the library first if need be.

    ``envs`` is the folder of the virtual environments, or "here": the calling interpreter, in
    which the library is expected. None is given if it is not there.
    """
    if library not in PEERS:
        return sys.executable
    if str(envs) == "here":
        found = importlib.util.find_spec(MODULES.get(library, library))
        return sys.executable if found else None
    folder, wanted = Path(envs, library), " ".join(PEERS[library])
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[library]], check=True)
        installed.write_text(wanted)
    return str(python)


def machine():
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(distribution):
    """Give the version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "source"
