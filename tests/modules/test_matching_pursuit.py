"""MatchingPursuitModule against loops in numpy float64, and its derivatives against differences."""

import numpy as np
import pytest
import torch

from sksae.losses import auxk_loss
from sksae.modules import MatchingPursuitModule, _matching_pursuit, load_overcomplete_sae
from sksae.modules._matching_pursuit import pursue

N, D, C, K = 40, 6, 15, 5


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = MatchingPursuitModule(D, C, k=K).double().train()
    module.set_units(torch.randn(D, dtype=torch.float64), 2.0)
    module.after_step()
    return module


@pytest.fixture
def u():
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference(rows, atoms, n_steps):
    """Codes and residuals of matching pursuit, row by row."""
    codes = np.zeros((len(rows), len(atoms)))
    residuals = rows.copy()
    for i in range(len(rows)):
        for _ in range(n_steps):
            products = atoms @ residuals[i]
            best = products.argmax()
            value = max(0.0, products[best])
            codes[i, best] += value
            residuals[i] -= value * atoms[best]
    return codes, residuals


@pytest.fixture(params=["gram", "products"])
def way(request, monkeypatch):
    """Both ways to the inner products of later steps."""
    use_gram = request.param == "gram"
    monkeypatch.setattr(_matching_pursuit, "_gram_pays", lambda *_: use_gram)


def test_codes_are_those_of_the_textbook(way, module, u):
    atoms = module.get_dictionary().detach().numpy()
    codes, residual = reference((u - module.decoder_bias).detach().numpy(), atoms, K)
    pre_codes, found, u_hat, _ = module.forward_scaled(u)
    np.testing.assert_allclose(found.detach(), codes, atol=1e-7)
    np.testing.assert_allclose((u - u_hat).detach(), residual, atol=1e-7)
    np.testing.assert_allclose(pre_codes.detach(), residual @ atoms.T, atol=1e-7)
    np.testing.assert_allclose(
        u_hat.detach(), codes @ atoms + module.decoder_bias.detach().numpy(), atol=1e-7
    )
    assert ((codes > 0).sum(axis=1) < K).any()  # some concept was chosen again
    assert codes.min() >= 0


def test_derivatives_by_rows_and_dictionary(way):
    torch.manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(7, 4, dtype=torch.float64), dim=1)
    inputs = torch.randn(6, 4, dtype=torch.float64).requires_grad_(), atoms.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, a: pursue(c, a, 5)[::2], inputs)


def test_a_row_that_no_concept_points_along_has_no_codes():
    values, _, residual = pursue(torch.tensor([[-1.0, -2.0]]), torch.eye(2), 2)
    assert values.tolist() == [[0, 0]]
    assert residual.tolist() == [[-1, -2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_not_encoded(dtype):
    """A row that is explained exactly has as many codes as it is made of."""
    torch.manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8, dtype=dtype))[0]
    codes = torch.zeros(50, 8, dtype=dtype)
    codes[:, :2] = 1e4 * torch.rand(50, 2, dtype=dtype) + 1
    values, _, _ = pursue(codes @ atoms, atoms, 8)
    assert (values > 0).sum(dim=1).tolist() == [2] * 50


def test_planted_conditionally_orthogonal_concepts_are_read_off():
    """A parent, and children at a right angle to it but close to each other in pairs."""
    atoms = torch.eye(4, dtype=torch.float64)
    atoms[2] = torch.tensor([0.0, 0.6, 0.8, 0.0])
    rows = torch.stack([3 * atoms[0] + atoms[1], 3 * atoms[0] + atoms[2]])
    values, chosen, _ = pursue(rows, atoms, 2)
    assert chosen.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_allclose(values, [[3, 1], [3, 1]])


def test_the_way_to_the_products_depends_on_their_cost():
    pays = _matching_pursuit._gram_pays
    assert pays(torch.empty(100, 4), 10, 12)
    assert not pays(torch.empty(100, 4), 10, 11)
    wide = torch.empty(1, 1).expand(2**14, 4)
    assert not pays(wide, 2**20, 32)  # 1 GiB


def test_the_same_weights_in_overcomplete_give_the_same_codes(u):
    torch.manual_seed(0)
    module = MatchingPursuitModule(D, C, k=K).train()
    other = load_overcomplete_sae().MpSAE(D, C, k=K).train()
    other.dictionary.load_state_dict(module.dictionary.state_dict())
    assert isinstance(module, type(other))
    x = u.float()
    _, codes, x_hat = module(x)
    _, expected, expected_hat = other(x)
    kept = expected.min(dim=1).values >= 0  # theirs goes on with negative products
    assert 0.5 < kept.double().mean()
    np.testing.assert_allclose(codes[kept].detach(), expected[kept].detach(), atol=1e-5)
    np.testing.assert_allclose(x_hat[kept].detach(), expected_hat[kept].detach(), atol=1e-5)


def test_pre_codes_teach_dead_concepts_alone(module, u):
    pre_codes, _, u_hat, dictionary = module.forward_scaled(u)
    dead = torch.tensor([2, 7])
    auxk_loss(u - u_hat, pre_codes[:, dead], dictionary[dead], 2).backward()
    gradient = module.dictionary._weights.grad.abs().sum(dim=1)
    assert set(gradient.nonzero()[:, 0].tolist()) == {2, 7}
    assert module.decoder_bias.grad is None


def test_auxk_turns_a_dead_concept_to_what_is_missing():
    """Rows are made of four axes; the dictionary has three, and one that points away."""
    module = MatchingPursuitModule(8, 4, k=1).double().train()
    with torch.no_grad():
        module.dictionary._weights.copy_(torch.eye(4, 8))
        module.dictionary._weights[3] = torch.tensor([0.1, -1, -1, -1, -1, 0.3, -0.1, 0.2])
        module.after_step()
    rows = torch.rand(200, 1, dtype=torch.float64) * torch.eye(8, dtype=torch.float64)[5]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        pre_codes, _, _, dictionary = module.forward_scaled(rows)
        auxk_loss(rows, pre_codes[:, 3:], dictionary[3:], 1).backward()
        optimizer.step()
        module.after_step()
    assert module.get_dictionary()[3, 5] > 0.95


def test_folded_units_give_the_same_codes(module, u):
    folded = module.eval().fold_normalization()
    assert folded.input_scale == 1
    np.testing.assert_allclose(folded.encode(u)[1].detach(), module.encode(u)[1].detach())


def test_there_is_no_idle_encoder(module):
    assert {name for name, _ in module.named_parameters()} == {
        "decoder_bias",
        "dictionary._weights",
    }
