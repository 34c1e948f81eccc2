"""What edits do to loss and logits, against closed forms and plain runs."""

import copy

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sksae import Extractor, KeepRows, TopKSAE
from sksae.intervention import Add, Effects, Scale, effects, intervene, spliced_loss

TEXTS = [
    "the sea is blue",
    "a hidden state is a vector, and the vector has many features",
    "models read tokens; they do not read",
    "no",
    "naïve 🌊 café",
]
ARRAYS = ("loss_change", "loss_change_active", "kl", "kl_active", "logit_change", "changed")


def numbers(found):
    return np.stack([getattr(found, name) for name in (*ARRAYS, "n_active", "n_texts")])


class Linear(nn.Module):
    """A language model whose logits are linear in its only hidden state."""

    def __init__(self, vocabulary=300, width=16):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.embed.weight.data = 2 * torch.randn(vocabulary, width, generator=generator)
        self.block = nn.Identity()
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight.data = 0.5 * torch.randn(vocabulary, width, generator=generator)

    def forward(self, input_ids, attention_mask=None):
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=self.head(self.block(self.embed(input_ids))))


def softmax_log(x):
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


@pytest.mark.parametrize("edit", ["ablate", 2.0, Scale(-1.0), Add(1.5)])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_closed_form_of_a_linear_model(byte_tokenizer, edit, scaled):
    model = Linear()
    acts = Extractor(model, "block", tokenizer=byte_tokenizer, max_length=64, skip_first=1)
    sae = TopKSAE(24, top_k=4, nb_epochs=10, batch_size=16, device="cpu", random_state=0)
    steps = [KeepRows(StandardScaler())] if scaled else []
    pipe = make_pipeline(acts, *steps, sae).fit(TEXTS)
    scaler = steps[0].transformer_ if scaled else None
    concepts, target = [2, 7, 11], 42
    found = effects(pipe, TEXTS, concepts, value=edit, target=target, batch_size=2)

    embed, head = (m.weight.detach().double().numpy() for m in (model.embed, model.head))
    dictionary = sae.components_.astype(np.float64)
    codes = sae.transform(scaler.transform(embed) if scaled else embed).toarray()
    expected = {name: [] for name in ARRAYS}
    for j in concepts:
        lines, active = [], []
        for text in TEXTS:
            ids = byte_tokenizer(text)["input_ids"]
            for at, (token, following) in enumerate(zip(ids[:-1], ids[1:], strict=True)):
                z = codes[token, j]
                new = {"ablate": 0, 2.0: 2, Scale(-1.0): -z, Add(1.5): z + 1.5}[edit]
                push = (new - z) * dictionary[j] * (scaler.scale_ if scaled else 1)
                old = head @ embed[token]
                moved = old + head @ push if at >= 1 else old
                p, q = softmax_log(old), softmax_log(moved)
                kl = (np.exp(p) * (p - q)).sum()
                other = old.argmax() != moved.argmax()
                lines.append((p[following] - q[following], kl, (moved - old)[target], other))
                active.append(at >= 1 and z != 0)
        loss, kl, logit, changed = np.array(lines, dtype=float).T
        active = np.array(active)
        assert 3 < active.sum() < len(active) / 2
        some = [loss[active].mean(), kl[active].mean()]
        for name, value in zip(
            ARRAYS,
            (loss.mean(), some[0], kl.mean(), some[1], logit.mean(), changed.mean()),
            strict=True,
        ):
            expected[name].append(value)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-3, atol=1e-5, err_msg=name)
    assert found.n_predictions == len(lines)
    assert np.abs(found.kl).min() > 1e-3


def test_counts_are_those_of_the_codes(pipe):
    codes = pipe.transform(TEXTS)
    found = effects(pipe, TEXTS, "all")
    assert found.concepts.tolist() == list(range(48))
    # "no" is a text of two tokens here; all texts predict something.
    np.testing.assert_array_equal(found.n_active, codes.getnnz(axis=0))
    n_texts = [len(np.unique(codes.rows.text[codes[:, [j]].nonzero()[0]])) for j in range(48)]
    np.testing.assert_array_equal(found.n_texts, n_texts)


def test_dead_concepts_do_nothing_exactly(pipe, monkeypatch):
    codes = pipe.transform(TEXTS)
    dead = np.flatnonzero(codes.getnnz(axis=0) == 0)[:3].tolist()
    for edit in ("ablate", Scale(9.0), 0):
        found = effects(pipe, TEXTS, dead, value=edit)
        for name in ("loss_change", "kl", "logit_change", "changed", "n_active", "n_texts"):
            assert not getattr(found, name).any(), name
        assert np.isnan(found.loss_change_active).all() and np.isnan(found.kl_active).all()
    assert effects(pipe, TEXTS, dead, value=5.0).kl.min() > 0


def test_a_plain_run_inside_intervene_agrees(pipe, tiny_llama, byte_tokenizer):
    (j,) = np.argsort(-pipe.transform(TEXTS).getnnz(axis=0))[:1]
    found = effects(pipe, TEXTS, int(j), value=4.0)

    def losses():
        nats = []
        for text in TEXTS:
            ids = byte_tokenizer(text, return_tensors="pt")["input_ids"]
            if ids.shape[1] > 1:
                with torch.no_grad():
                    out = tiny_llama(ids).logits[0, :-1].double()
                nats.append(nn.functional.cross_entropy(out, ids[0, 1:], reduction="none"))
        return float(torch.cat(nats).mean())

    clean = losses()
    with intervene(None, None, pipe, {int(j): 4.0}):
        assert found.loss_change[0] == pytest.approx(losses() - clean, abs=1e-5)
    assert found.loss == pytest.approx(clean, rel=1e-5)
    assert found.loss == pytest.approx(spliced_loss(pipe, TEXTS).ce, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_neither_batches_nor_padding_change_anything(pipe, byte_tokenizer, side, batch_size):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.padding_side = side
    alone = effects(pipe, TEXTS, [1, 2, 3, 4], batch_size=1)
    found = effects(pipe, TEXTS, [1, 2, 3, 4], tokenizer=tokenizer, batch_size=batch_size)
    np.testing.assert_allclose(numbers(found), numbers(alone), atol=2e-5, rtol=2e-3)


def test_small_buffers_change_nothing(pipe, monkeypatch):
    whole = numbers(effects(pipe, TEXTS, [1, 2]))
    monkeypatch.setattr("sksae.intervention._splice._LOGITS", 20_000)
    monkeypatch.setattr("sksae.intervention._splice._STEP", 700)
    monkeypatch.setattr("sksae.intervention._edits._CODES", 100)
    np.testing.assert_allclose(numbers(effects(pipe, TEXTS, [1, 2])), whole, atol=1e-5, rtol=1e-3)


def test_without_the_error_reconstructions_are_compared(pipe):
    found = effects(pipe, TEXTS, [1, 2], keep_error=False)
    assert found.loss == pytest.approx(spliced_loss(pipe, TEXTS).ce_spliced, rel=1e-4)
    assert found.loss_change != pytest.approx(effects(pipe, TEXTS, [1, 2]).loss_change)
    same = effects(pipe, TEXTS, [1, 2], value=Scale(1.0), keep_error=False)
    assert not same.kl.any()


def test_targets_of_a_language_model(pipe, byte_tokenizer):
    by_id = effects(pipe, TEXTS, [1, 2], target=byte_tokenizer("a")["input_ids"][0])
    by_name = effects(pipe, TEXTS, [1, 2], target="a")
    np.testing.assert_array_equal(by_id.logit_change, by_name.logit_change)
    assert (by_id.logit_change != effects(pipe, TEXTS, [1, 2]).logit_change).any()
    with pytest.raises(ValueError, match="target='xyz' of effects must be one token. This token"):
        effects(pipe, TEXTS, 1, target="xyz")
    with pytest.raises(ValueError, match="target=300 of effects is no token: the ids end at 299"):
        effects(pipe, TEXTS, 1, target=300)
    with pytest.raises(TypeError, match="must be a token of the language model, by id or as a s"):
        effects(pipe, TEXTS, 1, target=[1, 2])


def test_what_does_not_fit_is_refused(pipe, sae, tiny_gpt2, byte_tokenizer):
    for none in ([], (), np.array([], dtype=int)):
        with pytest.raises(ValueError, match="'concepts' of effects must be different ones. Got n"):
            effects(pipe, TEXTS, none)
    with pytest.raises(ValueError, match="Got concept 3 more than once"):
        effects(pipe, TEXTS, [3, "topksae3"])
    with pytest.raises(ValueError, match="effects knows no concept 48. Give the number of one"):
        effects(pipe, TEXTS, 48)
    with pytest.raises(TypeError, match="The 'value' parameter of effects must be a number"):
        effects(pipe, TEXTS, 3, value="half")
    with pytest.raises(ValueError, match="effects got no extractor, so it needs model= and layer"):
        effects(sae, TEXTS, 3)
    with pytest.raises(ValueError, match="None of the 1 texts has a token to predict"):
        effects(pipe, ["a"], 3)
    for nothing in ([""], ["", ""]):
        with pytest.raises(ValueError, match="effects needs texts with tokens"):
            effects(pipe, nothing, 3)
    with pytest.raises(ValueError, match="minimum of 1 is required by effects"):
        effects(pipe, [], 3)
    given = {"layer": 0, "tokenizer": byte_tokenizer}
    with pytest.raises(ValueError, match="GPT2Model gives no logits"):
        effects(sae, TEXTS, 3, model=tiny_gpt2, **given)


def test_the_table_and_progress(pipe, capsys):
    found = effects(pipe, TEXTS, ["topksae3", 1], verbose=1)
    assert "2/2" in capsys.readouterr().err
    n = sum(len(pipe[0].tokenizer(text)["input_ids"]) - 1 for text in TEXTS)
    table = found.to_frame()
    assert list(table.columns) == ["name", *ARRAYS, "n_active", "n_texts"]
    assert table.index.tolist() == [3, 1] and table.index.name == "concept"
    assert table["name"].tolist() == ["topksae3", "topksae1"]
    assert repr(found) == f"Effects(2 concepts, loss={found.loss:.4g}, n_predictions={n})"
    assert isinstance(found, Effects)
    effects(pipe, TEXTS, 1)
    assert capsys.readouterr().err == ""


def test_models_stay_as_they_were(pipe, tiny_llama):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16).train()
    found = effects(pipe, TEXTS, [1, 2], model=model, value=8.0)
    plain = effects(pipe, TEXTS, [1, 2], value=8.0)
    assert found.loss_change == pytest.approx(plain.loss_change, abs=0.05)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -- classifiers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tiny_bert, bert_tokenizer):
    from transformers import BertForSequenceClassification

    config = copy.deepcopy(tiny_bert.config)
    config.label2id, config.id2label = (
        {"sea": 0, "state": 1, "?": 2},
        {0: "sea", 1: "state", 2: "?"},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(tiny_bert.state_dict())
    model.classifier.weight.data *= 20
    return model


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_classifier_by_hand(classifier, bert_tokenizer, batch_size):
    acts = Extractor(classifier, "layer.0", tokenizer=bert_tokenizer)
    sae = TopKSAE(24, top_k=2, nb_epochs=10, batch_size=16, device="cpu", random_state=0)
    pipe = make_pipeline(acts, sae).fit(TEXTS)
    codes = pipe.transform(TEXTS)
    per_text = np.array(
        [[codes[codes.rows.text == i][:, [j]].nnz for i in range(5)] for j in range(24)]
    )
    j = int(np.flatnonzero(((per_text > 0).sum(axis=1) > 1) & ((per_text > 0).sum(axis=1) < 5))[0])

    def run():
        with torch.no_grad():
            out = [classifier(**bert_tokenizer(t, return_tensors="pt")).logits[0] for t in TEXTS]
        return torch.stack(out).double()

    clean = run()
    with intervene(None, None, pipe, {j: "ablate"}):
        edited = run()
    p, q = clean.log_softmax(1), edited.log_softmax(1)
    for target, which in (
        (None, clean.argmax(1)),
        ("state", torch.ones(5, dtype=torch.int64)),
        ([2, 0, 1, 0, 2], torch.tensor([2, 0, 1, 0, 2])),
    ):
        found = effects(pipe, TEXTS, j, target=target, batch_size=batch_size)
        at = (torch.arange(5), which)
        active = per_text[j] > 0
        kl = (p.exp() * (p - q)).sum(1)
        expected = {
            "loss_change": (p - q)[at].mean(),
            "loss_change_active": (p - q)[at][active].mean(),
            "kl": kl.mean(),
            "kl_active": kl[active].mean(),
            "logit_change": (edited - clean)[at].mean(),
            "changed": (clean.argmax(1) != edited.argmax(1)).double().mean(),
        }
        for name, value in expected.items():
            assert getattr(found, name)[0] == pytest.approx(float(value), rel=1e-3, abs=1e-6), name
        assert found.kl[0] > 1e-6
        assert (found.n_active[0], found.n_texts[0]) == (per_text[j].sum(), active.sum())
        assert found.loss == pytest.approx(-float(p[at].mean()), rel=1e-4)
        assert found.n_predictions == 5
    with pytest.raises(ValueError, match="target holds the classes 3 to 3, and BertForSequ"):
        effects(pipe, TEXTS, j, target=3)
    with pytest.raises(ValueError, match="target holds 'sky', which config.label2id of Bert"):
        effects(pipe, TEXTS, j, target="sky")
    with pytest.raises(ValueError, match=r"one class for each of 5 texts. Got shape \(2,\)"):
        effects(pipe, TEXTS, j, target=[0, 1])
    with pytest.raises(ValueError, match=r"texts\[1\] has no tokens, so it has no class"):
        effects(pipe, ["no", ""], j, tokenizer=without_specials(bert_tokenizer))


def without_specials(tokenizer):
    """Give a tokenizer that adds no [CLS] and [SEP], so that a text may have no token."""
    from tokenizers import processors

    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", None, [])
    return bare


def test_models_by_name_are_loaded_with_their_head(
    classifier, bert_tokenizer, pipe, tiny_llama, byte_tokenizer, tmp_path
):
    for model, tokenizer, layer in (
        (classifier, bert_tokenizer, "layer.0"),
        (tiny_llama, byte_tokenizer, 1),
    ):
        folder = str(tmp_path / type(model).__name__)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        sae = TopKSAE(24, top_k=2, nb_epochs=2, device="cpu", random_state=0)
        by_name = make_pipeline(Extractor(folder, layer), sae).fit(TEXTS)
        given = {"model": model, "layer": layer, "tokenizer": tokenizer}
        expected = numbers(effects(by_name[1], TEXTS, [1, 2], **given))
        np.testing.assert_allclose(
            numbers(effects(by_name, TEXTS, [1, 2])), expected, rtol=1e-3, atol=1e-5
        )
