"""The modules against their formulas, in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sksae.estimators._jumprelu import KERNEL_NAMES
from sksae.kernels import above
from sksae.modules import (
    KERNELS,
    BatchTopKModule,
    CrosscoderModule,
    GatedModule,
    JumpReLUModule,
    MatryoshkaModule,
    TopKModule,
    TranscoderModule,
    VanillaModule,
    jump_relu,
    load_overcomplete_sae,
    step,
)
from sksae.modules._base import mean_kth_largest

N, D, C = 7, 5, 11
BUILD = {
    VanillaModule: {},
    TopKModule: {"top_k": 3},
    BatchTopKModule: {"top_k": 3, "threshold_momentum": 0.9},
    JumpReLUModule: {"kernel": "rectangle", "bandwidth": 0.5},
    GatedModule: {},
    MatryoshkaModule: {
        "top_k": 3,
        "threshold_momentum": 0.9,
        "prefixes": (4, C),
        "prefix_weights": (1.0, 1.0),
    },
}


@pytest.fixture(params=BUILD, ids=lambda cls: cls.__name__)
def module(request):
    return build(request.param)


def build(cls, **params):
    torch.manual_seed(0)
    module = cls(D, C, **(BUILD[cls] | params)).double()
    module.set_units(torch.randn(D, dtype=torch.float64), 3.0)
    with torch.no_grad():
        for parameter in module.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.fixture
def x():
    return 2 * torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pre_codes(module, x):
    """Encoder's product, written out in input units."""
    weight, bias = module.encoder.final_block[0].weight, module.encoder.final_block[0].bias
    s, b = module.input_scale, module.decoder_bias * module.input_scale
    return (x - b) @ weight.T + bias * s


def test_coders_of_several_layers_are_their_overcomplete_classes():
    sae = load_overcomplete_sae()
    assert issubclass(CrosscoderModule, sae.BatchTopKSAE)
    assert issubclass(TranscoderModule, sae.TopKSAE)


def test_each_module_is_its_overcomplete_class():
    sae = load_overcomplete_sae()
    theirs = (sae.SAE, sae.TopKSAE, sae.BatchTopKSAE, sae.JumpSAE, sae.SAE, sae.BatchTopKSAE)
    pairs = zip(BUILD, theirs, strict=True)
    assert all(issubclass(cls, theirs) for cls, theirs in pairs)


def test_start_is_tied_and_of_unit_norm():
    module = VanillaModule(D, C, encoder_init_norm=0.5)
    assert torch.allclose(module.get_dictionary().norm(dim=1), torch.ones(C))
    assert torch.allclose(module.encoder.final_block[0].weight, 0.5 * module.get_dictionary())
    assert module.encoder.final_block[0].bias.abs().max() == 0


def test_codes_and_reconstruction_are_in_input_units(module, x):
    module.train()
    pre, codes, x_hat = module(x)
    assert torch.allclose(pre, pre_codes(module, x))
    expected = codes @ module.get_dictionary() + module.decoder_bias * module.input_scale
    assert torch.allclose(x_hat, expected)
    assert torch.allclose(module.decode(codes), x_hat)


def test_vanilla_is_relu(x):
    module = build(VanillaModule)
    assert torch.allclose(module.encode(x)[1], pre_codes(module, x).relu())


def test_topk_keeps_the_k_largest_of_each_row(x):
    module = build(TopKModule)
    expected = pre_codes(module, x).relu().detach()
    for row in expected:
        row[row.argsort()[: C - 3]] = 0
    assert torch.allclose(module.encode(x)[1], expected)


@pytest.mark.parametrize("k", [1, C])
def test_topk_at_its_ends(x, k):
    module = build(TopKModule, top_k=k)
    codes = module.encode(x)[1]
    relu = pre_codes(module, x).relu()
    assert torch.allclose(codes, relu if k == C else relu * (relu == relu.amax(1, keepdim=True)))


def test_batchtopk_keeps_k_times_n_of_a_batch(x):
    module = build(BatchTopKModule).train()
    codes = module.encode(x)[1]
    relu = pre_codes(module, x).relu()
    threshold = relu.flatten().sort(descending=True).values[3 * N - 1]
    assert (codes != 0).sum() == 3 * N
    assert torch.allclose(codes, relu * (relu >= threshold))
    assert torch.allclose(module.running_threshold * module.input_scale, threshold)


def test_batchtopk_threshold_is_a_running_mean(x):
    module = build(BatchTopKModule).train()
    module.encode(x)
    first = module.running_threshold.clone()
    module.encode(x * 2)
    second = (pre_codes(module, 2 * x).relu().flatten().sort(descending=True).values)[3 * N - 1]
    past = 0.9 ** (N / 1024)  # the momentum is meant for batches of 1,024 rows
    expected = past * first + (1 - past) * second / module.input_scale
    assert torch.allclose(module.running_threshold, expected)
    module.eval()
    module.encode(x * 5)
    assert torch.allclose(module.running_threshold, expected)


def test_batchtopk_evaluation_does_not_depend_on_the_batch(x):
    module = build(BatchTopKModule).train()
    module.encode(x)
    module.eval()
    alone = torch.cat([module.encode(row[None])[1] for row in x])
    assert torch.allclose(alone, module.encode(x)[1])


def test_batchtopk_with_fewer_positive_entries_than_its_budget(x):
    module = build(BatchTopKModule, top_k=C).train()
    codes = module.encode(x)[1]
    assert torch.allclose(codes, pre_codes(module, x).relu())
    module.eval()
    assert torch.allclose(module.encode(x)[1], codes)


def test_jumprelu_is_pre_code_above_threshold(x):
    module = build(JumpReLUModule)
    pre = pre_codes(module, x)
    threshold = module.thresholds.exp() * module.input_scale
    assert torch.allclose(module.encode(x)[1], pre * (pre > threshold))


@pytest.mark.parametrize("stored", [False, True])
def test_thresholds_times_the_factor_of_a_batch_meet_the_target(stored):
    rng = np.random.default_rng(0)
    pre, thresholds = rng.standard_normal((600, C)), rng.uniform(0.4, 0.9, C)
    module = build(JumpReLUModule, target_l0=2)
    with torch.no_grad():
        module.thresholds.copy_(torch.from_numpy(thresholds).log())
    given = (torch.from_numpy(pre),)
    if stored:  # those above a cut below all thresholds, as training stores them
        codes, values = above(given[0], torch.tensor(0.1))
        given = (values, codes)
    largest = np.sort((pre / thresholds).ravel())[::-1]
    factor = module.l0_factor(*given)
    np.testing.assert_allclose(factor, largest[1199:1201].mean())
    module.multiply_thresholds(factor)
    np.testing.assert_allclose(module.thresholds.detach().exp(), thresholds * factor.numpy())
    assert (pre > module.thresholds.detach().exp().numpy()).sum() == 1200


@pytest.mark.parametrize("target", [0.5, 1.5, 4])  # few, and more than are stored
def test_the_factor_of_a_batch_is_that_of_its_stored_pre_codes(target):
    module = build(JumpReLUModule, target_l0=target, bandwidth=0.2)
    pre = torch.randn(600, C, dtype=torch.float64)
    codes, values = module.select_stored(pre)
    factor = module.l0_factor(values, codes)
    torch.testing.assert_close(module.l0_factor(pre), factor)
    assert (factor == 0.5) == (600 * target > len(values)) == (target == 4)


def test_a_small_batch_hardly_moves_the_thresholds():
    module, pre = build(JumpReLUModule, target_l0=2), torch.full((1, C), 3.0)
    assert 1 < module.l0_factor(pre) < 1.01
    module.target_l0 = C - 1
    assert module.l0_factor(-pre) == 0.5 ** ((C - 1) / 1024)
    assert build(JumpReLUModule).l0_factor(pre) is None
    assert build(VanillaModule).l0_factor(pre) is None


def test_dictionary_is_pure(module):
    module.train()
    with torch.no_grad():
        module.dictionary._weights.mul_(2)
    before = module.dictionary._weights.clone()
    assert torch.allclose(module.get_dictionary().norm(dim=1), torch.ones(C, dtype=torch.float64))
    assert torch.equal(module.dictionary._weights, before)
    module.after_step()
    assert torch.allclose(module.dictionary._weights.norm(dim=1), before.norm(dim=1) / 2)


def test_dictionary_gradient_has_no_part_along_its_rows(module, x):
    module.train()(x)[-1].square().sum().backward()
    weights = module.dictionary._weights
    along = (weights.grad * weights).sum(dim=1)
    assert along.abs().max() < 1e-7 * weights.grad.abs().max()
    assert weights.grad.abs().max() > 0


def test_evaluation_mode_copies_loads_and_follows_its_weights(module, x):
    module.train().encode(x)
    module.eval()
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x)[-1], module(x)[-1])
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5)
        other.after_step()
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin.decode(twin.encode(x)[1]), other.decode(other.encode(x)[1]))


def test_state_dict_holds_thresholds_and_units(module):
    keys = set(module.state_dict())
    assert {"decoder_bias", "input_scale", "samples_since_fired"} < keys
    if isinstance(module, BatchTopKModule):
        assert "running_threshold" in keys


def test_far_rows_are_pulled_in_and_others_are_left(module, x):
    module.set_units(torch.ones(x.shape[1]), 2.0, 3.0)
    u = torch.stack([x[0] / 2, x[0] / 2 + 1e6, torch.full_like(x[0], 0.5)])
    pulled = module.pull_in(u)
    near = (u[0] - 0.5).norm() <= 1.5
    assert torch.equal(pulled[0], u[0]) == bool(near)
    assert torch.equal(pulled[2], u[2])
    assert (pulled[1] - 0.5).norm().item() == pytest.approx(1.5)
    direction = torch.nn.functional.normalize(u[1] - 0.5, dim=0)
    assert torch.allclose(torch.nn.functional.normalize(pulled[1] - 0.5, dim=0), direction)
    module.set_units(torch.ones(x.shape[1]), 2.0)
    assert torch.equal(module.pull_in(u), u)


def test_counts_how_long_a_concept_is_silent(module):
    fired = torch.zeros(C, dtype=torch.bool)
    fired[3] = True
    module.count_fired(fired, 4)
    module.count_fired(fired, 3)
    assert module.samples_since_fired[3] == 0
    assert module.samples_since_fired[0] == 7


def test_overcompletes_own_training_loop_runs_on_it(module, x, capsys):
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x.repeat(20, 1)), batch_size=35)
    train_sae = load_overcomplete_sae().train_sae
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)

    def loss(x, x_hat, pre, codes, dictionary):
        return (x - x_hat).square().mean()

    logs = train_sae(module, loader, loss, optimizer, nb_epochs=8)
    assert logs["avg_loss"][-1] < logs["avg_loss"][0]


# -- pseudo-gradients -----------------------------------------------------------------------


def test_kernel_names_agree():
    assert tuple(KERNELS) == KERNEL_NAMES
    assert set(KERNELS) == set(load_overcomplete_sae().JumpSAE._KERNELS)


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_kernels_are_densities_of_overcompletes_shape(name):
    t = torch.linspace(-3000, 3000, 6_000_001, dtype=torch.float64)
    values = KERNELS[name](t)
    assert torch.trapezoid(values, t).item() == pytest.approx(1, abs=2e-3)
    assert torch.allclose(values, KERNELS[name](-t))
    near = torch.linspace(-2.03, 2.03, 401, dtype=torch.float64)
    theirs = load_overcomplete_sae().JumpSAE._KERNELS[name](near, torch.tensor(1.0))
    ratio = (KERNELS[name](near) / theirs)[theirs.abs() > 1e-6]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)


@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("bandwidth", [0.01, 1.0])
def test_jumprelu_gradients_are_the_closed_form(name, bandwidth):
    rng = np.random.default_rng(0)
    threshold = np.array([0.3, 1.0])
    z = threshold + bandwidth * rng.standard_normal((50, 2))
    upstream = rng.standard_normal((50, 2))
    density = KERNELS[name](torch.from_numpy((z - threshold) / bandwidth)).numpy()

    def gradients(function):
        zt, tt = torch.from_numpy(z).requires_grad_(), torch.from_numpy(threshold).requires_grad_()
        out = function(zt, tt, name, bandwidth)
        out.backward(torch.from_numpy(upstream))
        return out.detach().numpy(), zt.grad, tt.grad.numpy()

    out, dz, dt = gradients(jump_relu)
    np.testing.assert_array_equal(out, np.where(z > threshold, z, 0))
    np.testing.assert_allclose(dz.numpy(), upstream * (z > threshold))
    np.testing.assert_allclose(dt, (-threshold / bandwidth * density * upstream).sum(0))
    out, dz, dt = gradients(step)
    np.testing.assert_array_equal(out, (z > threshold).astype(float))
    assert dz is None or not dz.any()
    np.testing.assert_allclose(dt, (-density * upstream).sum(0) / bandwidth)


def test_step_gradient_matches_the_change_of_the_expected_count():
    """For z with a smooth density, d/dt E[H(z - t)] is minus that density at t."""
    z = torch.linspace(-4, 4, 80_001, dtype=torch.float64)[:, None]
    t = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    weight = torch.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    (step(z, t, "rectangle", 0.1) * weight).sum().backward()
    assert t.grad.item() == pytest.approx(-np.exp(-0.125) / np.sqrt(2 * np.pi), rel=1e-3)


# -- encoders and dictionary parameters -------------------------------------------------------


class Squares(nn.Module):
    """A custom encoder with its own parameters."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x):
        pre = self.linear(x) ** 2
        return pre, pre.relu()


def test_a_passed_encoder_is_copied():
    encoder = Squares(D, C)
    module = VanillaModule(D, C, encoder_module=encoder)
    assert module.encoder is not encoder
    assert torch.equal(module.encoder.linear.weight, encoder.linear.weight)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_dictionary_initializer(convert):
    start = np.random.default_rng(0).standard_normal((C, D))
    module = VanillaModule(D, C, dictionary_params={"initializer": convert(start)})
    expected = start / np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(module.get_dictionary().detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        module.encoder.final_block[0].weight.detach().numpy(), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("rows", "k", "cut"),
    [
        ([[5.0, 3.0, 1.0], [4.0, 2.0, 0.0]], 1, 3.5),  # between 4 and 3
        ([[5.0, 3.0, 1.0], [4.0, 2.0, 0.0]], 1.5, 2.5),
        ([[5.0, -3.0, -1.0]], 1, 2.5),  # the next counts as 0
        ([[5.0, 3.0]], 2, 1.5),  # there is no next
        ([[-1.0, -2.0]], 1, 0.0),
    ],
)
def test_the_cut_lies_between_the_entries_it_parts(rows, k, cut):
    batch = torch.tensor(rows, dtype=torch.float64)
    assert mean_kth_largest([batch], k).item() == cut
    assert mean_kth_largest([batch, batch[:1]], k).item() == pytest.approx(
        (len(rows) * cut + mean_kth_largest([batch[:1]], k).item()) / (len(rows) + 1)
    )
