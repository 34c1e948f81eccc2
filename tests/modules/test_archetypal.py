"""ArchetypalDictionary against numpy float64, its bounds, and its copies."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sksae.kernels import Workspace
from sksae.modules import ArchetypalModule, load_overcomplete_sae

D, C, P, DELTA = 6, 9, 12, 0.3


@pytest.fixture
def module():
    torch.manual_seed(0)
    points = normalize(torch.randn(P, D, dtype=torch.float64), dim=1)
    module = ArchetypalModule(D, C, points=points, delta=DELTA, top_k=3).double().train()
    with torch.no_grad():
        module.dictionary.logits.add_(0.1 * torch.randn(C, P, dtype=torch.float64))
        module.dictionary.Relax.add_(torch.randn(C, D, dtype=torch.float64))
        module.dictionary.Relax[4] = 1e-3
    module.after_step()
    return module


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_rows_are_relaxed_combinations_of_candidates(module):
    layer = module.dictionary
    logits, relax, points = (t.detach().numpy() for t in (layer.logits, layer.Relax, layer.C))
    weights = np.exp(10 * logits)
    weights /= weights.sum(axis=1, keepdims=True)
    archetypes = unit(weights @ points)
    np.testing.assert_allclose(layer.weights().detach(), weights, atol=1e-12)
    np.testing.assert_allclose(layer.archetypes().detach(), archetypes, atol=1e-12)
    expected = unit(archetypes + relax)
    np.testing.assert_allclose(module.get_dictionary().detach(), expected, atol=1e-12)
    np.testing.assert_allclose(layer.rows(torch.tensor([4, 1])).detach(), expected[[4, 1]])


def test_relaxations_are_cut_to_delta_and_so_are_angles(module):
    norms = module.dictionary.Relax.detach().norm(dim=1).numpy()
    np.testing.assert_allclose(np.delete(norms, 4), DELTA)
    assert norms[4] == pytest.approx(1e-3 * D**0.5)  # a short one stays
    cosines = (module.get_dictionary() * module.dictionary.archetypes()).sum(dim=1)
    assert cosines.min() >= np.sqrt(1 - DELTA**2) - 1e-12


def test_derivatives_are_those_of_differences(module):
    layer = module.dictionary

    def rows(logits, relax):
        return torch.func.functional_call(layer, {"logits": logits, "Relax": relax}, (eye,))

    eye = torch.eye(C, dtype=torch.float64)
    inputs = [p.detach().clone().requires_grad_() for p in (layer.logits, layer.Relax)]
    assert torch.autograd.gradcheck(rows, inputs)


def test_stored_codes_give_what_dense_ones_give(module):
    u = torch.randn(20, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for stored in (True, False):
        module.zero_grad()
        if stored:
            buffer = Workspace(torch.empty(20, C, dtype=torch.float64))
            error = module.forward_sparse(u, buffer, lambda *_: None)[4]
        else:
            error = (u - module.forward_scaled(u)[2]).square().mean()
        error.backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_a_start_is_at_the_candidates():
    points = normalize(torch.randn(P, D), dim=1)
    few = ArchetypalModule(D, 5, points=points, delta=0.0, top_k=2)
    assert few.dictionary.weights().diagonal().detach().numpy() == pytest.approx([0.9] * 5)
    np.testing.assert_allclose(few.linear_encoder.weight.detach(), few.get_dictionary().detach())
    many = ArchetypalModule(D, 40, points=points[:3], delta=0.1, top_k=2)  # theirs has rows of 0
    rows = many.get_dictionary().detach()
    np.testing.assert_allclose(rows.norm(dim=1), 1, rtol=1e-5)
    assert len(torch.unique(rows.round(decimals=3), dim=0)) > 30


def test_the_dictionary_is_kept_after_training_and_follows_a_loaded_state(module):
    trained = module.get_dictionary().detach()
    layer = module.eval().dictionary
    assert torch.equal(layer.get_dictionary(), trained)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.train().dictionary.logits.mul_(-1)
    assert not torch.allclose(twin.eval().get_dictionary(), trained)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.get_dictionary(), trained)


def test_it_is_overcompletes(module):
    sae = load_overcomplete_sae()
    assert isinstance(module, sae.RATopKSAE)
    assert isinstance(module.dictionary, sae.RelaxedArchetypalDictionary)
