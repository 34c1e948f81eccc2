"""Linear layers through oneDNN: the same numbers, and nothing that they are not meant for."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sksae import Extractor, _linear
from sksae._linear import FastLinear, linear

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def calls(monkeypatch):
    """Take oneDNN on whatever processor; the shapes of the weights that it was given."""
    given, by_onednn = [], _linear._by_onednn

    def counted(x, weight, bias):
        given.append(tuple(weight.shape))
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(_linear, "prefers_onednn", lambda: True)
    monkeypatch.setattr(_linear, "_by_onednn", counted)
    return given


def tensors(*shape):
    generator = torch.manual_seed(0)
    x = torch.randn(*shape, 7, generator=generator)
    weight, bias = torch.randn(11, 7, generator=generator), torch.randn(11, generator=generator)
    return x, weight, bias


def reference(x, weight, bias):
    return (x.double() @ weight.double().T + bias.double()).float()


LAYOUTS = {
    "plain": lambda t: t,
    "every second": lambda t: torch.stack([t, 0 * t], dim=1)[:, 0],
    "transposed": lambda t: t if t.dim() == 1 else t.T.contiguous().T,
    "expanded": lambda t: t[:1].expand(t.shape),
}


@needs_onednn
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 5, 600])
def test_linear_in_every_layout(calls, n, layout):
    x, weight, bias = (LAYOUTS[layout](t) for t in tensors(n))
    out = torch.full((n + 2, 11), torch.nan)[1:-1]
    linear(x, weight, bias, out)
    assert calls
    torch.testing.assert_close(out, reference(x, weight, bias), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3)])
def test_layers_of_a_model_of_every_shape(calls, shape):
    x, weight, bias = tensors(*shape)
    with torch.no_grad(), FastLinear():
        found = [F.linear(x, weight, bias), F.linear(x, weight), F.linear(x, weight=weight)]
        if x.dim() == 2:
            found.append(torch.addmm(bias, x, weight.T))
    assert len(calls) == len(found)
    for y, b in zip(found, [bias, 0 * bias, 0 * bias, bias], strict=False):
        torch.testing.assert_close(y, reference(x, weight, b), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_what_is_left_alone(calls):
    x, weight, bias = tensors(3)
    with FastLinear():
        y = F.linear(x, weight.requires_grad_(), bias)
        y.sum().backward()
        assert torch.equal(weight.grad, x.sum(dim=0).expand(11, -1))
        with torch.no_grad():
            assert F.linear(*(t.double() for t in (x, weight, bias))).dtype == torch.float64
            assert F.linear(*(t.bfloat16() for t in (x, weight, bias))).dtype == torch.bfloat16
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert F.linear(x, weight, bias).dtype == torch.bfloat16
            assert F.linear(x[0], weight, bias).shape == (11,)
            assert F.linear(x, weight[0]).shape == (3,)
            assert F.linear(x[:0], weight, bias).shape == (0, 11)
            one = bias[:1]
            torch.testing.assert_close(torch.addmm(one, x, weight.T), one + x @ weight.T)
            assert F.linear(x, weight, one).shape == (3, 11)
            for wrong in (weight[:, :5], weight.T):
                with pytest.raises(RuntimeError, match="shapes"):
                    F.linear(x, wrong, bias)
            assert torch.addmm(y, x, weight.T, beta=0).shape == (3, 11)
            torch.testing.assert_close(torch.addmm(y, x, weight.T), y + x @ weight.T)
    assert not calls
    out = torch.empty(3, 11, dtype=torch.float64)
    linear(*(t.double() for t in (x, weight, bias)), out)
    assert torch.allclose(out, x.double() @ weight.double().T + bias.double())
    assert not calls


@needs_onednn
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_rows_of_models(calls, request, model):
    model = request.getfixturevalue(model)
    tokenizer = request.getfixturevalue(
        "bert_tokenizer" if model.config.model_type == "bert" else "byte_tokenizer"
    )
    texts = ["the cat sat on the mat", "one", "a longer text about the dog and the cat"]
    extractor = Extractor(model, 1, tokenizer=tokenizer, cache=None)
    fast = extractor.fit_transform(texts)
    assert calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_linear, "prefers_onednn", lambda: False)
        n_calls = len(calls)
        plain = extractor.transform(texts)
        assert len(calls) == n_calls
    np.testing.assert_allclose(np.asarray(fast), np.asarray(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False)]
    + [("GenuineIntel", "AVX512", False)],
)
def test_which_processors(monkeypatch, tmp_path, vendor, capability, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(_linear, "_CPU_INFO", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    decide = _linear.prefers_onednn.__wrapped__
    there = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    assert decide() == (expected and there)
    monkeypatch.setattr(_linear, "_by_onednn", lambda *_: torch.ops.mkldnn.there_is_no_such())
    assert not decide()
    monkeypatch.setattr(_linear, "_by_onednn", lambda *_: torch.zeros(2, 2))
    assert not decide()
    path.unlink()
    monkeypatch.setattr(_linear.platform, "processor", lambda: f"AMD64 Family 25, {vendor}")
    assert _linear._is_amd() == (vendor == "AuthenticAMD")
