"""Steps that are repeated from a record, with what stands for a CUDA graph on the CPU.

Where a graph runs what it recorded, the stand-in calls what was recorded again, and writes the
results where the first ones are.
"""

import functools

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sksae import BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE, VanillaSAE
from sksae.datasets import make_activations
from sksae.kernels import _dead
from sksae.modules import VanillaModule
from sksae.training import SAENet, _net, _recorded, _stored
from sksae.training._recorded import RecordedSteps, _places


@pytest.fixture(scope="module")
def X():
    """In float64, so that rounding does not decide which code is active."""
    X, _ = make_activations(1500, 12, 24, n_active=4, noise=0.05, random_state=0)
    return X.astype(np.float64)


@pytest.fixture
def graphs(monkeypatch):
    """Record steps on the CPU; give what was recorded and how often each was repeated."""
    pytest.importorskip("numba")
    recorded = []

    def capture(work, device, pool):
        weights = [p.detach().clone() for p in net.module_.parameters()]
        state = {p: {k: v.clone() for k, v in s.items()} for p, s in net.optimizer_.state.items()}
        held = [*net.module_.buffers(), *net.criterion_.buffers()]
        buffers = [(value, value.clone()) for value in held]
        record = list(records[0].records.values())[-1]
        results = work()
        # What is recorded is not done.
        with torch.no_grad():
            for parameter, before in zip(net.module_.parameters(), weights, strict=True):
                parameter.copy_(before)
            for parameter, values in state.items():
                for name, value in values.items():
                    net.optimizer_.state[parameter][name].copy_(value)
            for value, before in buffers:
                value.copy_(before)
        entry = {"n": 0}
        recorded.append(entry)

        def replay():
            entry["n"] += 1
            with records[0]._inputs_read(record):
                for result, again in zip(results, work(), strict=True):
                    result.copy_(again)

        return replay, results

    nets, records = [], []

    class Recorded(RecordedSteps):
        def __init__(self, net, n_rows):
            super().__init__(net, n_rows)
            nets[:], records[:] = [net], [self]

    original = SAENet.take_step

    def take_step(self, x, y, numbers=None):
        # The kernels for the CPU read the rate in the optimizer, where it is the same.
        assert numbers is None or float(numbers[0]) == self.optimizer_.param_groups[0]["lr"]
        done = original(self, x, y, None)
        self.module_.row_gradients = None
        return done

    class Net:
        def __getattr__(self, name):
            return getattr(nets[0], name)

    net = Net()
    monkeypatch.setattr(SAENet, "take_step", take_step)
    monkeypatch.setattr(_recorded, "_capture", capture)
    monkeypatch.setattr(_net, "RecordedSteps", Recorded)
    monkeypatch.setattr(_net, "_repeats_on", lambda device: True)
    monkeypatch.setattr(_dead, "_way", lambda device, k, n_dead: _dead._sums_on_device)
    return recorded


def fit(cls, X, **params):
    params = {"nb_epochs": 12, "batch_size": 64, "random_state": 0, "top_k": 4} | params
    return cls(300, backend="cpu", device="cpu", **params).fit(X)


@pytest.mark.parametrize("cls", [TopKSAE, BatchTopKSAE, MatryoshkaSAE])
@pytest.mark.parametrize(
    "params",
    [{}, {"auxk_coefficient": 0.0}, {"dead_after": 200}, {"relative_start": 0.9}],
    ids=lambda params: " ".join(params) or "defaults",
)
def test_a_fit_of_repeated_steps_is_the_fit(cls, params, X, graphs, monkeypatch):
    """The last batch of an epoch is smaller, and so is taken as ever."""
    if cls is TopKSAE and "relative_start" in params:
        pytest.skip("of variants whose rows share codes")
    repeated = fit(cls, X, **params)
    n_repeated = sum(entry["n"] for entry in graphs)
    assert n_repeated > (20 if "dead_after" in params else 60)
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    plain = fit(cls, X, **params)
    assert sum(entry["n"] for entry in graphs) == n_repeated
    np.testing.assert_allclose(repeated.components_, plain.components_, atol=1e-6)
    for key in ("train_loss", "l0", "explained_variance", "dead_fraction"):
        np.testing.assert_allclose(repeated.history_[:, key], plain.history_[:, key], rtol=1e-7)
    assert repeated.n_steps_ == plain.n_steps_
    assert repeated.backend_ == plain.backend_


def test_what_is_not_the_same_is_recorded_anew_or_not_at_all(X, graphs):
    fit(TopKSAE, X, k_anneal=144, nb_epochs=6)
    assert sum(entry["n"] for entry in graphs) < 100  # k goes from 16 to 4
    graphs.clear()
    JumpReLUSAE(300, target_l0=4, nb_epochs=6, batch_size=64, backend="cpu", device="cpu").fit(X)
    assert graphs == []  # on stored codes, whose number has to be read


def fit_dense(cls, X, **params):
    """Fit with dense codes, as there are too few concepts for stored ones."""
    sparsity = "top_k" if "top_k" in cls().get_params() else "target_l0"
    params = {"nb_epochs": 14, "batch_size": 64, "random_state": 0, sparsity: 4} | params
    sae = cls(200, device="cpu", **params).fit(X)
    assert sae.backend_.startswith("reference (plain torch on cpu")
    return sae


def same(one, other):
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-6)
    for key in ("train_loss", "l0", "explained_variance", "dead_fraction"):
        np.testing.assert_allclose(one.history_[:, key], other.history_[:, key], rtol=1e-7)
    assert one.n_steps_ == other.n_steps_ and one.backend_ == other.backend_
    assert one.module_.dead_places is None


DENSE = [TopKSAE, BatchTopKSAE, MatryoshkaSAE, JumpReLUSAE, VanillaSAE, GatedSAE]


@pytest.mark.parametrize("cls", DENSE)
@pytest.mark.parametrize(
    "params",
    [{}, {"dead_after": 200}, {"criterion": "dead_neurons_reanimation"}, {"relative_start": 0.9}],
    ids=lambda params: " ".join(params) or "defaults",
)
def test_steps_with_dense_codes_are_repeated(cls, params, X, graphs, monkeypatch):
    """With a penalty that grows, thresholds that follow a target for L0, and dead concepts."""
    if "relative_start" in params and "relative_start" not in cls().get_params():
        pytest.skip("of variants whose rows share codes or have thresholds")
    repeated = fit_dense(cls, X, **params)
    n_repeated = sum(entry["n"] for entry in graphs)
    assert n_repeated > (20 if "dead_after" in params else 100)
    if "dead_after" in params:
        assert max(repeated.history_[:, "dead_fraction"]) > 0
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    same(repeated, fit_dense(cls, X, **params))
    assert sum(entry["n"] for entry in graphs) == n_repeated


@pytest.mark.parametrize("normalization", ["l2", "l1", "identity", "max_l2", "max_l1"])
def test_dictionaries_are_as_without_a_record(normalization, X, graphs, monkeypatch):
    """Rows of a dictionary that are scaled together cannot be taken from it without the others."""
    params = {"dictionary_params": {"normalization": normalization}, "dead_after": 200}
    repeated = fit_dense(TopKSAE, X, **params)
    assert max(repeated.history_[:, "dead_fraction"]) > 0
    n_repeated = sum(entry["n"] for entry in graphs)
    assert n_repeated == 0 if normalization.startswith("max") else n_repeated > 10
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    same(repeated, fit_dense(TopKSAE, X, **params))


class Anneal(Callback):
    def __init__(self, change):
        self.change = change

    def on_epoch_end(self, net, **kwargs):
        self.change(net)


def heavier(net):
    net.criterion_.terms = [(1.15 * c, term) for c, term in net.criterion_.terms]


def narrower(net):
    net.module_.bandwidth *= 0.9


def aim_lower(net):
    net.criterion_.target_l0 *= 0.95


@pytest.mark.parametrize(
    ("cls", "change"),
    [(VanillaSAE, heavier), (GatedSAE, aim_lower), (JumpReLUSAE, narrower), (JumpReLUSAE, heavier)],
)
def test_what_a_callback_changes_is_seen(cls, change, X, graphs, monkeypatch):
    params = {"callbacks": [Anneal(change)]}
    repeated = fit_dense(cls, X, **params)
    assert sum(entry["n"] for entry in graphs) > 100
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    same(repeated, fit_dense(cls, X, **params))


@pytest.mark.parametrize("cls", [JumpReLUSAE, VanillaSAE, GatedSAE])
def test_what_is_computed_of_dense_codes_is_compiled_in_long_fits(cls, X, graphs, monkeypatch):
    """The compiler is torch's, up to the code that it generates."""
    monkeypatch.setattr(_recorded, "_FEWEST_COMPILED", 1000)
    compiler = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(_recorded.torch, "compile", compiler)
    fast = fit_dense(cls, X)
    assert "plain torch on cpu, compiled: 200 concepts are too few" in fast.backend_
    assert sum(entry["n"] for entry in graphs) > 100
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    plain = fit_dense(cls, X)
    assert "compiled" not in plain.backend_
    np.testing.assert_allclose(fast.components_, plain.components_, atol=1e-6)


def test_each_fit_has_a_compiler_of_its_own(X, graphs, monkeypatch):
    """It makes at most eight variants of one piece of code."""
    monkeypatch.setattr(_recorded, "_FEWEST_COMPILED", 1000)
    monkeypatch.setattr(
        _recorded.torch, "compile", functools.partial(torch.compile, backend="eager")
    )
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for m in range(100, 110):
        sae = VanillaSAE(m, nb_epochs=2, batch_size=64, device="cpu", random_state=0).fit(X)
        assert "plain torch on cpu, compiled: " in sae.backend_


@pytest.mark.parametrize("at_once", [True, False])
def test_what_cannot_be_compiled_runs_in_plain_torch(at_once, X, graphs, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(_recorded, "_FEWEST_COMPILED", 1000)
    monkeypatch.setattr(_recorded.torch, "compile", fail if at_once else lambda *a, **k: fail)
    with pytest.warns(RuntimeWarning, match=r"not be compiled \(RuntimeError: no compiler\)"):
        fast = fit_dense(VanillaSAE, X)
    assert "compiled" not in fast.backend_ and sum(entry["n"] for entry in graphs) > 100
    monkeypatch.setattr(_net, "_repeats_on", lambda device: False)
    same(fast, fit_dense(VanillaSAE, X))


@pytest.mark.parametrize(
    "params",
    [
        {"criterion": lambda x, x_hat, *others: (x - x_hat).square().mean()},
        {"encoder_module": "mlp_ln_1"},
        {"backend": "reference"},
        {"clip_grad": 1.0},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_is_not_known_is_not_recorded(params, X, graphs):
    VanillaSAE(200, nb_epochs=2, batch_size=64, device="cpu", **params).fit(X)
    assert graphs == []


def test_a_subclass_is_not_recorded(X, graphs):
    class Module(VanillaModule):
        pass

    class Own(VanillaSAE):
        def _module(self):
            return Module, {}

    Own(200, nb_epochs=2, batch_size=64, device="cpu").fit(X)
    assert graphs == []


@pytest.mark.parametrize("params", [{}, {"dead_after": 100}])
def test_steps_in_plain_torch_are_not_recorded(params, X, graphs, monkeypatch):
    """Where too many codes are stored, which a batch tells when it is tried anew."""
    monkeypatch.setitem(_stored._LARGEST_SHARE, "cpu", 1 / 100)
    monkeypatch.setattr(_stored, "_size_obstacle", lambda *args: None)
    sae = TopKSAE(300, top_k=4, nb_epochs=6, batch_size=64, device="cpu", **params).fit(X)
    assert "144 of 144 steps in plain torch" in sae.backend_
    assert graphs == []


def test_what_learns_is_part_of_a_kind_of_step(X, graphs, monkeypatch):
    class Freeze(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.module_.linear_encoder.weight.requires_grad_(len(net.history) % 4 < 2)

    fits = []
    for repeats in (True, False):
        monkeypatch.setattr(_net, "_repeats_on", lambda device, repeats=repeats: repeats)
        fits.append(fit(TopKSAE, X, nb_epochs=6, callbacks=[Freeze()]))
    assert sum(entry["n"] for entry in graphs) > 20
    weights = [sae.module_.linear_encoder.weight.detach() for sae in fits]
    assert torch.allclose(*weights, atol=1e-6)


def test_a_record_that_fails_is_not_tried_again(X, graphs, monkeypatch):
    def fail(work, device, pool):
        work()
        raise RuntimeError("not permitted when stream is capturing\nmore")

    monkeypatch.setattr(_recorded, "_capture", fail)
    with pytest.warns(RuntimeWarning, match=r"CUDA graph \(not permitted when .* capturing\)"):
        sae = fit(TopKSAE, X)
    assert sae.n_steps_ == 12 * 24


def test_places_for_dead_concepts_change_seldom():
    sizes = [(0, 0), (1, 64), (64, 64), (65, 128), (64, 128), (33, 128), (32, 64), (20, 64)]
    sizes += [(3000, 4096), (0, 0), (16, 64), (2, 64)]
    before = 0
    for n_dead, expected in sizes:
        before = _places(n_dead, before)
        assert before == expected


def test_few_records_are_kept(X, graphs, monkeypatch):
    """As the number of dead concepts goes up and down, one is repeated that was made before."""
    kept, original = [], RecordedSteps.step

    def step(self, x, y):
        # None, some or many of the places are taken, in turns of twelve steps.
        n = [0, 40, 90, 200, 0, 40][self.net.n_steps_ // 12 % 6]
        self.net.module_.dead_concepts = torch.arange(n)
        done = original(self, x, y)
        kept.append(len(self.records))
        return done

    monkeypatch.setattr(RecordedSteps, "step", step)
    monkeypatch.setattr(SAENet, "_after_step", lambda self, done: None)
    sae = fit(TopKSAE, X, nb_epochs=8)
    assert max(kept) == 3 and sae.n_steps_ == 192
    assert len(graphs) > 3  # the first is forgotten when the fourth is made
    assert sum(entry["n"] for entry in graphs) > 30
