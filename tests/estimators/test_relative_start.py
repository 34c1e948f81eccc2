"""Samples that share codes or thresholds, at the start of a fit as if they were of one size."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sksae import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE
from sksae.datasets import make_korznikov
from sksae.metrics import recovered_fraction
from sksae.modules import BatchTopKModule, FrozenEncoderModule, JumpReLUModule

K, M = 3, 20


def module_of(cls=BatchTopKModule, **params):
    torch.manual_seed(0)
    module = cls(6, M, top_k=K, threshold_momentum=0.9, **params).double().train()
    with torch.no_grad():
        module.linear_encoder.bias.normal_(std=0.3)
        module.decoder_bias.normal_(std=0.3)
    return module


@pytest.fixture
def u():
    generator = torch.Generator().manual_seed(1)
    sizes = torch.rand(50, 1, generator=generator, dtype=torch.float64) * 3
    return torch.randn(50, 6, generator=generator, dtype=torch.float64) * sizes


@pytest.mark.parametrize("cls", [BatchTopKModule, FrozenEncoderModule])
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_codes_are_ranked_as_of_rows_of_nearer_norms(u, power, cls):
    module = module_of(cls)
    module.relative = power
    pre_codes, codes = (t.detach().numpy() for t in module.encode_scaled(u))

    c = u.numpy() - module.decoder_bias.detach().numpy()
    weight, bias = (t.detach().numpy() for t in module.linear_encoder.parameters())
    norms = np.linalg.norm(c, axis=1)
    sizes = (norms / np.sqrt(np.mean(norms**2))) ** power
    ranked = (c / sizes[:, None]) @ weight.T + bias
    kept = ranked >= np.sort(ranked, axis=None)[-K * len(u)]
    np.testing.assert_allclose(pre_codes, c @ weight.T + bias, atol=1e-12)
    np.testing.assert_allclose(codes, np.where(kept, pre_codes.clip(0), 0), atol=1e-12)
    assert float(module.running_threshold) == pytest.approx(ranked[kept].min())


def test_the_power_takes_out_the_size_of_a_row(u):
    module = module_of()
    with torch.no_grad():
        module.linear_encoder.bias.zero_()
        module.decoder_bias.zero_()
    module.relative = 1.0
    codes = module.encode_scaled(u)[1]
    other = module.encode_scaled(u * torch.linspace(0.1, 9, 50)[:, None])[1]
    assert torch.equal(codes > 0, other > 0)
    module.relative = 0.5
    assert not torch.equal(codes > 0, module.encode_scaled(u)[1] > 0)


def test_only_training_steps_that_share_codes_know_it(u):
    module = module_of()
    plain = module.encode_scaled(u)[1]
    module.relative = 1.0
    assert not torch.equal(module.encode_scaled(u)[1] > 0, plain > 0)
    assert module.eval().row_sizes(u) is None
    module.train().per_sample = True
    assert module.row_sizes(u) is None


def test_rows_at_the_center_have_no_codes_and_do_no_harm(u):
    module = module_of()
    with torch.no_grad():
        module.linear_encoder.bias.zero_()
    module.relative = 1.0
    u[3] = module.decoder_bias.detach()
    codes = module.encode_scaled(u)[1]
    assert codes.isfinite().all() and not codes[3].any()
    assert module.encode_scaled(u[3:4])[1].count_nonzero() == 0


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, net, batch, training=False, **kwargs):
        if training:
            self.seen.append(net.module_.relative)


@pytest.mark.parametrize("start, steps", [(0.2, 4), (3, 3), (0, 0), (1.0, 20)])
def test_the_power_falls_to_zero(start, steps):
    X = np.random.default_rng(0).standard_normal((100, 6))
    params = {"batch_size": 50, "nb_epochs": 10, "device": "cpu", "random_state": 0}
    watch = Watch()
    sae = BatchTopKSAE(M, top_k=K, relative_start=start, callbacks=[("watch", watch)], **params)
    sae.fit(X)
    expected = [1 - (i + 1) / steps if i < steps else 0 for i in range(20)]
    seen = dict(sae.net_.callbacks_)["watch"].seen
    assert seen == pytest.approx(expected)
    assert sae.module_.relative == 0


def test_the_start_decides_what_is_learnt_and_is_there_by_default():
    X = np.random.default_rng(0).standard_normal((200, 6)) * np.linspace(0.1, 2, 200)[:, None]
    params = {"batch_size": 50, "nb_epochs": 4, "device": "cpu", "random_state": 0}
    fits = [BatchTopKSAE(M, top_k=K, relative_start=s, **params).fit(X) for s in (0, 0.5)]
    assert not np.allclose(*(sae.components_ for sae in fits))
    assert BatchTopKSAE().relative_start == MatryoshkaSAE().relative_start == 0.2


@pytest.mark.parametrize("value", [-0.1, 1.5, True, "auto"])
def test_refusals(value):
    X = np.zeros((10, 4))
    with pytest.raises(ValueError, match="The 'relative_start' parameter of BatchTopKSAE"):
        BatchTopKSAE(8, top_k=2, relative_start=value).fit(X)


def test_more_planted_features_are_found_where_rows_differ_in_size():
    X, dictionary, _ = make_korznikov(
        10_000, n_features=24, nb_concepts=96, n_active=3, random_state=3
    )
    X *= np.random.default_rng(3).lognormal(0, 0.7, (len(X), 1)).astype(X.dtype)
    params = {"top_k": 3, "device": "cpu", "random_state": 0}
    found = [
        recovered_fraction(
            BatchTopKSAE(96, relative_start=start, **params).fit(X).components_, dictionary
        )
        for start in (0.0, 0.2, 0.5)
    ]
    assert found[1] > 1.5 * found[0] and found[2] > 2 * found[0], found


# -- thresholds of concepts -----------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_jumprelu_sees_rows_of_nearer_norms(u, power):
    module = JumpReLUModule(6, M, kernel="rectangle", bandwidth=1.0).double().train()
    with torch.no_grad():
        module.decoder_bias.normal_(std=0.3, generator=torch.manual_seed(2))
    assert module.start_rows(u) is u
    module.relative = power
    bias = module.decoder_bias.detach().numpy()
    c = u.numpy() - bias
    norms = np.linalg.norm(c, axis=1)
    sizes = (norms / np.sqrt(np.mean(norms**2))) ** power
    np.testing.assert_allclose(module.start_rows(u), bias + c / sizes[:, None], atol=1e-12)
    u[3] = module.decoder_bias.detach()
    assert torch.equal(module.start_rows(u)[3], u[3])
    assert module.eval().start_rows(u) is u


def test_numbers_of_later_epochs_are_of_the_rows_as_they_are():
    X = np.random.default_rng(0).standard_normal((400, 6)) * np.linspace(0.1, 3, 400)[:, None]
    params = {"batch_size": 50, "device": "cpu", "random_state": 0, "target_l0": 3}
    sae = JumpReLUSAE(M, nb_epochs=12, relative_start=20, **params).fit(X)
    plain = JumpReLUSAE(M, nb_epochs=12, **params).fit(X)
    assert not np.allclose(sae.components_, plain.components_)
    scale = float(sae.module_.input_scale)
    expected = np.square((X - X.mean(axis=0)) / scale).sum()
    assert sae.net_._sum_squares["train"] == pytest.approx(expected, rel=1e-4)
    throughout = JumpReLUSAE(M, nb_epochs=2, relative_start=1.0, **params).fit(X)
    assert "train" not in throughout.net_._sum_squares


def test_jumprelu_finds_more_planted_features():
    X, dictionary, _ = make_korznikov(
        20_000, n_features=24, nb_concepts=96, n_active=3, random_state=3
    )
    X *= np.random.default_rng(3).lognormal(0, 0.7, (len(X), 1)).astype(X.dtype)
    params = {"target_l0": 3, "device": "cpu", "random_state": 0}
    fits = [JumpReLUSAE(96, relative_start=start, **params).fit(X) for start in (0.0, 0.5)]
    found = [recovered_fraction(sae.components_, dictionary) for sae in fits]
    assert found[1] > 1.5 * found[0], found
    assert fits[1].l0_ == pytest.approx(3, rel=0.05)
