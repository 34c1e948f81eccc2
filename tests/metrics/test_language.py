"""Spliced models: shares recovered and divergences, against the written formulas."""

import math

import numpy as np
import pytest
import torch

from sksae.metrics import accuracy_recovered, kl_divergence, loss_recovered


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return 5 * rng.standard_normal((7, 11)), 5 * rng.standard_normal((7, 11))


def test_anchors_of_the_shares():
    assert loss_recovered(3.2, 3.2, 9.0) == 1
    assert loss_recovered(3.2, 9.0, 9.0) == 0
    assert loss_recovered(3.0, 10.0, 9.0) == pytest.approx(-1 / 6)
    assert accuracy_recovered(0.9, 0.9, 0.1) == 1
    assert accuracy_recovered(0.9, 0.1, 0.1) == 0


def test_the_share_is_that_of_saebench():
    ce, spliced, ablated = 3.1, 3.4, 8.7
    expected = (spliced - ablated) / (ce - ablated)
    assert loss_recovered(ce, spliced, ablated) == pytest.approx(expected)
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (ce, spliced, ablated)]
    assert loss_recovered(*tensors) == loss_recovered(*map(np.array, (ce, spliced, ablated)))
    nats = loss_recovered(*(v / math.log(2) for v in (ce, spliced, ablated)))
    assert nats == pytest.approx(expected)


def test_what_the_shares_refuse():
    with pytest.raises(ValueError, match="ce_ablated of loss_recovered must differ from ce: both"):
        loss_recovered(3.0, 3.1, 3.0)
    with pytest.raises(ValueError, match="accuracy_ablated of accuracy_recovered must differ from"):
        accuracy_recovered(1, 0.5, 1)
    with pytest.raises(ValueError, match="ce_spliced of loss_recovered must be finite. Got nan"):
        loss_recovered(3.0, float("nan"), 9.0)
    with pytest.raises(TypeError, match="ce of loss_recovered must be a number, such as the mean"):
        loss_recovered(np.ones(3), 1.0, 2.0)


def test_the_divergence_is_the_written_formula(predictions):
    total = 0.0
    for p, q in zip(*predictions, strict=True):
        p, q = (np.exp(v) / sum(math.exp(w) for w in v) for v in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_divergence(*predictions) == pytest.approx(total / 7)


def test_logits_and_log_probabilities_agree(predictions, monkeypatch):
    expected = kl_divergence(*predictions)
    logs = [X - np.log(np.exp(X).sum(axis=1, keepdims=True)) for X in predictions]
    assert kl_divergence(*logs) == pytest.approx(expected)
    assert kl_divergence(predictions[0] + 1000, predictions[1] - 1000) == pytest.approx(expected)
    assert kl_divergence(*map(torch.tensor, predictions)) == pytest.approx(expected)
    monkeypatch.setattr("sksae.metrics._checks.BLOCK_VALUES", 22)
    assert kl_divergence(*predictions) == pytest.approx(expected)


def test_the_divergence_at_its_anchors(predictions):
    p, _ = predictions
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, p + 3) == pytest.approx(0, abs=1e-12)
    certain = np.log([[1.0, 1e-300]])
    certain[0, 1] = -np.inf
    assert kl_divergence(certain, np.log([[0.25, 0.75]])) == pytest.approx(math.log(4))
    assert kl_divergence(certain, certain) == 0
    assert kl_divergence(np.log([[0.25, 0.75]]), certain) == math.inf


def test_what_the_divergence_refuses(predictions):
    p, q = predictions
    with pytest.raises(ValueError, match=r"must have the same shape. Got \(7, 11\) and \(3, 11\)"):
        kl_divergence(p, q[:3])
    for bad in (np.nan, np.inf):
        wrong = q.copy()
        wrong[4, 2] = bad
        with pytest.raises(ValueError, match="log_probs_spliced of kl_divergence .* Row 4"):
            kl_divergence(p, wrong)
    with pytest.raises(ValueError, match="log_probs of kl_divergence must hold logits .* Row 0"):
        kl_divergence(np.full((1, 3), -np.inf), q[:1, :3])
    with pytest.raises(ValueError, match="log_probs of kl_divergence must have two dimensions"):
        kl_divergence(p[None], q[None])
