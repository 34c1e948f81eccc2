"""Training on stored codes against training in plain torch, and when which of them runs."""

import numpy as np
import pytest
import torch
from skorch.callbacks import GradientNormClipping

from sksae import (
    ArchetypalSAE,
    BatchTopKSAE,
    Crosscoder,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    TopKSAE,
    Transcoder,
    VanillaSAE,
)
from sksae.datasets import make_activations
from sksae.kernels import _cpu, _cuda, _ops
from sksae.losses import SAELossClasses
from sksae.training._stored import _size_obstacle

C = 96
FIFTY_STEPS = {"nb_epochs": 5, "batch_size": 100, "random_state": 0, "device": "cpu"}
SPARSE = "stored codes only"


@pytest.fixture(scope="module")
def X():
    return make_activations(n_samples=1000, n_features=24, random_state=0)[0].astype(np.float64)


def pair(cls, X, **params):
    y = X[:, :7] ** 2 if cls is Transcoder else None
    fits = [cls(C, backend=b, **FIFTY_STEPS, **params).fit(X, y) for b in ("reference", "cpu")]
    assert all(sae.n_steps_ == 50 for sae in fits)
    return fits


def assert_equal_fits(slow, fast, tolerance=1e-5):
    for name, value in slow.module_.state_dict().items():
        other = fast.module_.state_dict()[name]
        np.testing.assert_allclose(other.double(), value.double(), rtol=tolerance, atol=tolerance)
    for key in ("train_loss", "explained_variance", "l0", "dead_fraction"):
        np.testing.assert_allclose(fast.history_[:, key], slow.history_[:, key], atol=tolerance)
    assert fast.l0_ == pytest.approx(slow.l0_) and fast.dead_fraction_ == slow.dead_fraction_


VARIANTS = {
    "topk": (TopKSAE, {"top_k": 6}),
    "batchtopk": (BatchTopKSAE, {"top_k": 6}),
    "jumprelu": (JumpReLUSAE, {"target_l0": 6}),
    "jumprelu narrow": (JumpReLUSAE, {"target_l0": 6, "bandwidth": 0.05}),
    "jumprelu dead": (JumpReLUSAE, {"target_l0": 6, "dead_after": 60}),
    "triangular": (JumpReLUSAE, {"kernel": "triangular", "bandwidth": 0.2}),
    "cosine": (JumpReLUSAE, {"kernel": "cosine", "bandwidth": 0.2}),
    "vanilla": (VanillaSAE, {}),
    "gated": (GatedSAE, {"target_l0": 6, "resample_dead": True, "dead_after": 60}),
    "matryoshka": (
        MatryoshkaSAE,
        {"top_k": 6, "dead_after": 60, "prefix_weights": [3, 1, 0, 2, 1]},
    ),
    "crosscoder": (Crosscoder, {"top_k": 6, "n_layers": [10, 14], "dead_after": 60}),
    "transcoder": (Transcoder, {"top_k": 6, "dead_after": 60}),
    "skip": (Transcoder, {"top_k": 6, "skip": True}),
    "archetypal": (ArchetypalSAE, {"top_k": 6, "dead_after": 60}),
    "batchtopk start": (BatchTopKSAE, {"top_k": 6, "topk_start": 0.45, "k_anneal": 30}),
    "jumprelu start": (JumpReLUSAE, {"target_l0": 6.4, "topk_start": 23, "resample_dead": True}),
    "matryoshka start": (MatryoshkaSAE, {"top_k": 30, "topk_start": 0.45, "dead_after": 60}),
    "crosscoder start": (  # without Adam, which makes much of the rounding of small gradients
        Crosscoder,
        {"top_k": 6, "n_layers": 2, "topk_start": 0.45, "optimizer_class": torch.optim.SGD}
        | {"lr": 0.1},
    ),
    "batchtopk relative": (BatchTopKSAE, {"top_k": 6, "relative_start": 1.0}),
    "jumprelu relative": (JumpReLUSAE, {"target_l0": 6, "relative_start": 1.0}),
    "matryoshka relative": (MatryoshkaSAE, {"top_k": 6, "relative_start": 40, "dead_after": 60}),
    "crosscoder relative": (Crosscoder, {"top_k": 6, "n_layers": 2, "relative_start": 1.0}),
    "one prefix": (MatryoshkaSAE, {"top_k": 6, "prefixes": [1.0]}),
}

# What the kernels serve: dead concepts, clipping, optimizers, units, callbacks and so on.
SERVED = {
    "no AuxK": {"auxk_coefficient": 0},
    "AuxK": {"dead_after": 60, "k_aux": 3},
    "clip_grad": {"clip_grad": 1e-3},
    "optimizer_class": {"optimizer_class": torch.optim.SGD, "lr": 0.1},
    "optimizer_params": {"optimizer_params": {"weight_decay": 0.01, "amsgrad": True}},
    "scheduler_class": {"scheduler_class": None, "lr": 1e-3},
    "outlier_ratio": {"outlier_ratio": 1.1},
    "callbacks": {"callbacks": [GradientNormClipping(1e-3)]},
    "monitoring": {"monitoring": 7, "validation_fraction": 0.2, "nb_epochs": 6},
    "criterion": {"criterion": SAELossClasses.MSE},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("loops", ["numba", "torch", "cuda"])
def test_fifty_steps_are_those_of_plain_torch(name, loops, X, monkeypatch):
    if loops == "numba":
        pytest.importorskip("numba")
    elif loops == "torch":
        monkeypatch.setattr(_cpu, "compiled", lambda: None)
    else:  # what is computed on CUDA devices, in plain torch
        monkeypatch.setattr(_ops, "module_for", lambda device: _cuda)
        monkeypatch.setattr(_cuda, "compiled", lambda: None)
    cls, params = VARIANTS[name]
    slow, fast = pair(cls, X, **params)
    assert fast.backend_.startswith("cpu (stored codes only")
    assert ("Numba" in fast.backend_) == (loops == "numba")
    assert slow.backend_ == "reference (plain torch on cpu: as asked for)"
    assert_equal_fits(slow, fast)
    codes = [sae.transform(X).toarray() for sae in (slow, fast)]
    np.testing.assert_allclose(*codes, atol=1e-6)


@pytest.mark.parametrize("name", SERVED)
def test_what_the_kernels_serve(name, X):
    params = {"top_k": 6, **FIFTY_STEPS, **SERVED[name]}
    slow, fast = (TopKSAE(C, backend=b, **params).fit(X) for b in ("reference", "cpu"))
    if name == "criterion":
        assert "criterion is not 'mse'" in fast.backend_
    else:
        assert SPARSE in fast.backend_
    if name == "AuxK":  # that it acted
        without = TopKSAE(C, backend="cpu", **params | {"auxk_coefficient": 0}).fit(X)
        assert not np.allclose(without.components_, fast.components_)
    assert_equal_fits(slow, fast)


def squared(x, x_hat, pre_codes, codes, dictionary):
    return (x - x_hat).square().mean()


@pytest.mark.parametrize(
    "cls, params, reason",
    [
        (TopKSAE, {"use_amp": True}, "use_amp"),
        (TopKSAE, {"encoder_module": "mlp_ln_1"}, "encoder_module is not the linear one"),
        (TopKSAE, {"criterion": squared}, "criterion is not 'mse'"),
        (TopKSAE, {"criterion": "dead_neurons_reanimation"}, "criterion is not 'mse'"),
        (TopKSAE, {"dictionary_params": {"normalization": "l1"}}, "dictionary_params"),
        (TopKSAE, {"dictionary_params": {"use_multiplier": True}}, "dictionary_params"),
        (JumpReLUSAE, {"kernel": "gaussian"}, "kernel='gaussian' gives every pre-code a gradient"),
    ],
)
def test_what_they_do_not_serve_runs_in_plain_torch_and_is_said(cls, params, reason, X):
    X = X[:100].astype(np.float32)
    sae = cls(C, backend="cpu", device="cpu", nb_epochs=1, random_state=0, **params).fit(X)
    assert sae.backend_.startswith("reference (plain torch on cpu: ")
    assert reason in sae.backend_


def test_auto_looks_at_sizes(X):
    def backend_of(**params):
        sae = TopKSAE(nb_epochs=1, random_state=0, device="cpu", **params)
        return sae.fit(X[:200]).backend_

    assert SPARSE in backend_of(nb_concepts=512, top_k=8)
    assert "64 concepts are too few" in backend_of(nb_concepts=64, top_k=8)
    assert "top_k=100 of 512 concepts are too many" in backend_of(nb_concepts=512, top_k=100)


@pytest.mark.parametrize(
    "cls, fewest",
    [(TopKSAE, 256), (MatryoshkaSAE, 256), (JumpReLUSAE, 2**14), (VanillaSAE, None),
     (GatedSAE, None)],
)  # fmt: skip
def test_on_cuda_auto_asks_whether_the_number_of_codes_is_read(cls, fewest):
    sparsity = {"top_k": 4} if "top_k" in cls().get_params() else {}
    module = cls(**sparsity).fit(np.eye(8, 3)).module_
    for m in (255, 256, 2**14 - 1, 2**14, 2**16):
        module.nb_concepts = m
        large = fewest is not None and m >= fewest
        assert (_size_obstacle(module, "cuda", rounds=False) is None) == large
        half = large and cls is not JumpReLUSAE
        assert (_size_obstacle(module, "cuda", rounds=True) is None) == half
        assert (_size_obstacle(module, "cpu", rounds=False) is None) == (m >= 256)


def test_auto_leaves_batches_with_many_codes_to_plain_torch(X):
    params = {"l1_coefficient": 1e-6, "nb_epochs": 4, "batch_size": 100, "random_state": 0}
    params["device"] = "cpu"
    auto, slow = (VanillaSAE(512, backend=b, **params).fit(X) for b in ("auto", "reference"))
    assert "40 of 40 steps in plain torch: too many active codes" in auto.backend_
    np.testing.assert_allclose(auto.components_, slow.components_)


def test_a_fit_goes_on_with_other_kernels(X):
    first = TopKSAE(C, top_k=6, backend="cpu", warm_start=True, **FIFTY_STEPS).fit(X)
    second = TopKSAE(C, top_k=6, backend="reference", warm_start=True, **FIFTY_STEPS).fit(X)
    first.set_params(backend="reference").fit(X)
    second.set_params(backend="cpu").fit(X)
    assert_equal_fits(first, second)


def test_weights_that_became_nan_are_an_error(X):
    sae = TopKSAE(512, top_k=8, lr=1e200, nb_epochs=20, random_state=0, device="cpu", backend="cpu")
    with pytest.raises(FloatingPointError, match="not finite at training step"):
        sae.fit(X)


@pytest.mark.parametrize("name", VARIANTS)
def test_encoding_is_that_of_plain_torch(name, X):
    cls, params = VARIANTS[name]
    rows = (X, X[:, ::-1].copy()) if cls is Transcoder else (X,)
    sae = cls(C, nb_epochs=2, random_state=0, **params).fit(*rows)
    codes, back, score = sae.transform(X), sae.inverse_transform(sae.transform(X)), sae.score(*rows)
    assert codes.has_sorted_indices and codes.indices.dtype == np.int32
    sae.set_params(backend="reference")
    np.testing.assert_allclose(codes.toarray(), sae.transform(X).toarray(), atol=1e-12)
    np.testing.assert_allclose(back, codes.toarray() @ sae.components_ + sae.decoder_bias_)
    assert score == pytest.approx(sae.score(*rows), abs=1e-12)


def test_a_subclass_with_its_own_sparsity_is_not_taken_for_its_parent(X):
    from sksae.modules import TopKModule

    class HalfModule(TopKModule):
        def sparsify(self, pre_codes, relu_codes):
            return super().sparsify(pre_codes, relu_codes) / 2

    class HalfSAE(TopKSAE):
        def _module(self):
            return HalfModule, {"top_k": self.top_k}

    sae = HalfSAE(C, top_k=6, backend="cpu", device="cpu", nb_epochs=1, random_state=0).fit(X)
    assert "HalfModule has no select_stored for its sparsify" in sae.backend_
    assert sae.encode(torch.from_numpy(X)).detach().numpy() == pytest.approx(
        sae.transform(X).toarray()
    )
