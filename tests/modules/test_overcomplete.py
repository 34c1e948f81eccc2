"""overcomplete.sae loads without overcomplete's plotting, in every order, with one identity."""

import json
import pickle
import subprocess
import sys
import textwrap

import pytest

from sksae import TopKSAE
from sksae.datasets import make_activations
from sksae.modules import load_overcomplete_sae

# What a machine with a current matplotlib and without libGL does to overcomplete's plots.
NO_PLOTTING = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "cv2", "timm"):
            raise ImportError("libGL.so.1: cannot open shared object file")
sys.meta_path.insert(0, Refuse())
"""


# Loads what takes the time and no test here is about, then runs each piece of code in a fork.
FORKS = """
import json, os, sys, traceback
import sklearn, skorch, torch
for line in sys.stdin:
    code, sys.argv[1:] = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        failed = 1
        try:
            exec(code, {"__name__": "__main__"})
            failed = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(failed)
    os.close(write)
    with open(read) as out:
        text = out.read()
    print(json.dumps([os.waitpid(child, 0)[1], text]), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """Run code in a process that has seen neither sksae nor overcomplete; give what it prints."""
    command = [sys.executable, "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:

        def run(code, *args):
            process.stdin.write(json.dumps([textwrap.dedent(code), args]) + "\n")
            process.stdin.flush()
            status, out = json.loads(process.stdout.readline())
            assert status == 0, out
            return out.split()

        yield run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    X = make_activations(60, 6, 8, n_active=2, random_state=0)[0]
    encoder = load_overcomplete_sae().MLPEncoder(6, 8, nb_blocks=0)
    path = tmp_path_factory.mktemp("pickles") / "sae.pickle"
    sae = TopKSAE(8, top_k=2, nb_epochs=1, encoder_module=encoder, random_state=0).fit(X)
    path.write_bytes(pickle.dumps((sae, X)))
    return str(path)


def test_unpickling_comes_first(run, fitted):
    out = run(
        NO_PLOTTING
        + """
import pickle
sae, X = pickle.load(open(sys.argv[1], "rb"))
print(sae.transform(X).shape)
import overcomplete
print(isinstance(sae.module_, overcomplete.sae.TopKSAE))
""",
        fitted,
    )
    assert out == ["(60,", "8)", "True"]


def test_no_plotting_library_is_imported(run):
    assert run(
        """
        import sys, sksae.modules
        print([m for m in ("matplotlib", "cv2", "timm", "torchvision") if m in sys.modules])
        """
    ) == ["[]"]


def test_names_of_the_users_own_overcomplete(run):
    out = run(
        NO_PLOTTING
        + """
import sksae.modules, overcomplete, overcomplete.sae
from overcomplete import TopKSAE
print(TopKSAE is overcomplete.sae.TopKSAE, overcomplete.TopKSAE is TopKSAE)
print(issubclass(sksae.modules.TopKModule, TopKSAE))
try:
    overcomplete.no_such_name
except AttributeError as exc:
    print(str(exc).replace(" ", "_"), isinstance(exc.__cause__, ImportError))
"""
    )
    assert out[:3] == ["True"] * 3
    assert out[3:] == ["module_'overcomplete'_has_no_attribute_'no_such_name'", "True"]


@pytest.mark.parametrize("first", ["overcomplete", "sksae.modules"])
def test_one_identity_whoever_imports_first(run, first):
    """With the pyplot function that overcomplete misses in current matplotlib put back."""
    out = run(
        f"""
        import matplotlib.pyplot as plt
        plt.cm.get_cmap = plt.get_cmap
        try:
            import {first}
        except ImportError:
            pass  # a machine without libGL
        import sksae.modules, overcomplete
        from overcomplete.sae import TopKSAE
        print(issubclass(sksae.modules.TopKModule, TopKSAE))
        print(overcomplete.TopKSAE is TopKSAE)
        """
    )
    assert out == ["True", "True"]


def test_import_of_overcomplete_that_failed_before(run, fitted):
    out = run(
        NO_PLOTTING
        + """
try:
    import overcomplete
except ImportError:
    print("failed")
import pickle
sae, X = pickle.load(open(sys.argv[1], "rb"))
import overcomplete
print(isinstance(sae.module_, overcomplete.sae.TopKSAE), overcomplete.__version__)
""",
        fitted,
    )
    assert out == ["failed", "True", "0.3.0"]
