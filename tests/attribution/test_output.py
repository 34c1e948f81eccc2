"""Concept to output: closed forms, exact values by enumeration, models run by hand."""

import copy
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler
from torch import nn

from sksae import Extractor, KeepRows, TopKInputs, TopKSAE
from sksae.attribution import _estimates, concept_output_attribution, insertion_deletion
from sksae.attribution._readout import Readout
from sksae.intervention._hooks import replacing

pytest.importorskip("captum")

TEXTS = [
    "the sea is blue",
    "a hidden state is a vector, and the vector has many features. The sea has none.",
    "no",
    "blue tokens 🐋 are blue",
]
METHODS = ["gradient_x_activation", "integrated_gradients", "ablation", "shapley_sampling"]
COMPLETE = ["integrated_gradients", "shapley_sampling"]


class Toy(nn.Module):
    """Embeddings, a layer that passes them on, their sum, and a head: linear, or not."""

    def __init__(self, n_tokens, bend=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(n_tokens, 6, dtype=torch.float64)
        self.embed.weight.data = torch.randn(n_tokens, 6, generator=generator).double()
        self.layer = nn.Identity()
        self.head = nn.Linear(6, 3, dtype=torch.float64)
        self.head.weight.data = torch.randn(3, 6, generator=generator).double()
        self.bend = bend or (lambda x: x)

    def forward(self, input_ids, attention_mask):
        h = self.layer(self.embed(input_ids)) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(self.bend(h.sum(1))))


def toy_pipe(tokenizer, bend=None, steps=(), **params):
    model = Toy(len(tokenizer), bend)
    acts = Extractor(model, "layer", tokenizer=tokenizer)
    params = {"top_k": 2, "nb_epochs": 2, "batch_size": 16, "random_state": 0} | params
    return make_pipeline(acts, *steps, TopKSAE(12, **params)).fit(TEXTS)


@pytest.fixture(scope="module")
def toy(bert_tokenizer):
    return toy_pipe(bert_tokenizer)


@pytest.fixture(scope="module")
def bent(bert_tokenizer):
    return toy_pipe(bert_tokenizer, lambda x: torch.tanh(x / 4) + torch.sin(x))


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    """The tiny BERT with a random head of three classes."""
    from transformers import BertForSequenceClassification

    config = copy.deepcopy(tiny_bert.config)
    names = ["sea", "state", "sky"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(tiny_bert.state_dict())
    model.classifier.weight.data *= 50
    return model


def fitted(model, layer, tokenizer, **params):
    acts = Extractor(model, layer, tokenizer=tokenizer, **params)
    sae = TopKSAE(48, top_k=4, nb_epochs=2, batch_size=32, random_state=0)
    return make_pipeline(acts, sae).fit(TEXTS)


@pytest.fixture(scope="module")
def encoder(classifier, bert_tokenizer):
    return fitted(classifier, "layer.0", bert_tokenizer)


@pytest.fixture(scope="module")
def causal(tiny_llama, byte_tokenizer):
    return fitted(tiny_llama, 1, byte_tokenizer)


def dense(found):
    return found.scores.toarray()


# -- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[], [KeepRows(StandardScaler()), KeepRows(PCA(5))]])
@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_linear_model_every_method_is_the_closed_form(
    bert_tokenizer, method, keep_error, steps
):
    pipe = toy_pipe(bert_tokenizer, steps=steps)
    target = [2, 0, 1, 2]
    found, each = (
        concept_output_attribution(
            pipe,
            TEXTS,
            target=target,
            attribution_method=method,
            keep_error=keep_error,
            per_position=per_position,
            n_samples=2,
            random_state=0,
        )
        for per_position in (False, True)
    )
    back = pipe[-1].components_.astype(float)
    for step in reversed(pipe[1:-1]):
        back = step.inverse_transform(back) - step.inverse_transform(np.zeros_like(back))
    directions = back @ pipe[0].model.head.weight.detach().numpy().T
    rows = each.rows.text
    expected = each.activations.toarray() * directions[:, target].T[rows]
    scale = np.abs(expected).max()
    # captum sums the steps and orders in float32.
    tolerance = (1e-6 if method in COMPLETE else 1e-11) * scale
    np.testing.assert_allclose(dense(each), expected, atol=tolerance)
    summed = np.stack([expected[rows == i].sum(axis=0) for i in range(4)])
    np.testing.assert_allclose(dense(found), summed, atol=2 * tolerance)
    np.testing.assert_allclose(found.delta, 0, atol=100 * tolerance)
    assert found.scores.dtype == np.float64
    assert len(rows) < each.scores.nnz == each.activations.nnz <= 2 * len(rows)


def by_switches(pipe, text, target, **params):
    """Give the logit as a plain function of the set of concepts that are on, and the concepts."""
    model = pipe[0].model
    ids = torch.tensor(pipe[0].tokenizer(text)["input_ids"])
    x = model.embed.weight.detach().numpy()[ids]
    special = np.isin(ids, [pipe[0].tokenizer.cls_token_id, pipe[0].tokenizer.sep_token_id])
    codes = pipe[-1].transform(x[~special]).toarray()
    live = np.flatnonzero(codes.any(axis=0))

    def logit(on):
        off = [j for j in live if j not in on]
        h = x.copy()
        h[~special] -= codes[:, off] @ pipe[-1].components_[off]
        out = model.head(model.bend(torch.from_numpy(h.sum(axis=0))))
        return out[target].item()

    return logit, live.tolist()


def exact_shapley(logit, live):
    orders = list(itertools.permutations(live))
    return {
        j: np.mean([logit({*o[: o.index(j) + 1]}) - logit({*o[: o.index(j)]}) for o in orders])
        for j in live
    }


def test_all_orders_give_the_exact_shapley_values(bent, monkeypatch):
    def every(rng, n, n_samples):
        return map(list, itertools.permutations(range(n)))

    monkeypatch.setattr(_estimates, "orders", every)
    for text in ("no", "the sea"):
        logit, live = by_switches(bent, text, target=1)
        assert 3 <= len(live) <= 4
        found = concept_output_attribution(
            bent, [text], target=1, attribution_method="shapley_sampling"
        )
        expected = exact_shapley(logit, live)
        assert found.scores.indices.tolist() == live
        np.testing.assert_allclose(found.scores.data, list(expected.values()), atol=1e-6)
        assert found.scores.sum() == pytest.approx(logit(live) - logit([]), abs=1e-6)
        assert found.logits_baseline[0] == pytest.approx(logit([]))


def test_sampled_shapley_values_come_near_the_exact_ones(bent):
    logit, live = by_switches(bent, "the sea", target=1)
    exact = np.array(list(exact_shapley(logit, live).values()))
    ablated = [logit(live) - logit(set(live) - {j}) for j in live]
    found = concept_output_attribution(
        bent,
        ["the sea"],
        target=1,
        attribution_method="shapley_sampling",
        n_samples=500,
        random_state=0,
    )
    error = np.abs(found.scores.data - exact).max()
    assert error < 0.2 * np.abs(ablated - exact).max()


def test_ablation_by_enumeration(bent):
    logit, live = by_switches(bent, TEXTS[0], target=2)
    found = concept_output_attribution(bent, TEXTS[:1], target=2, attribution_method="ablation")
    expected = [logit(live) - logit(set(live) - {j}) for j in live]
    np.testing.assert_allclose(found.scores.data, expected, rtol=1e-9)


# -- models of transformers, run by hand ------------------------------------------------------


def by_hand(pipe, text, change):
    """Run one text with its codes changed, by a hook of its own; give the logits."""
    acts = pipe[0]
    inputs = acts.tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    ids = inputs["input_ids"][0].tolist()
    at = [i for i, t in enumerate(ids) if t not in acts.tokenizer.all_special_ids]
    at = [i for i in range(len(ids)) if i in at or ids[i] == acts.tokenizer.unk_token_id]

    def replace(state):
        x = state[0, at]
        codes = pipe[1].encode(x)
        new = state.clone()
        new[0, at] = x + pipe[1].decode(change(codes)) - pipe[1].decode(codes)
        return new

    with replacing(acts.model, acts.layer, replace):
        logits = acts.model(**inputs).logits[0]
    return logits if logits.ndim == 1 else logits[-1]


@pytest.mark.parametrize("which", ["encoder", "causal"])
def test_ablation_and_gradients_by_hand(which, request):
    pipe = request.getfixturevalue(which)
    for text in TEXTS[:3]:
        ablated = concept_output_attribution(pipe, [text], attribution_method="ablation")
        gradient = concept_output_attribution(pipe, [text])
        target = int(ablated.target[0])
        seen = []

        def watch(codes, seen=seen):
            seen.append(codes.detach().requires_grad_())
            return seen[0]

        logit = by_hand(pipe, text, watch)[target]
        logit.backward()
        pipe[0].model.zero_grad(set_to_none=True)
        expected = (seen[0] * seen[0].grad).sum(dim=0).detach().numpy()
        np.testing.assert_allclose(dense(gradient)[0], expected, atol=1e-4)
        for column, score in zip(ablated.scores.indices[:5], ablated.scores.data[:5], strict=True):
            mask = torch.ones(48)
            mask[column] = 0
            with torch.no_grad():
                without = by_hand(pipe, text, lambda z, m=mask: z * m)[target]
            assert score == pytest.approx(float(logit.detach() - without), abs=1e-4)


@pytest.mark.parametrize("which", ["encoder", "causal"])
def test_with_the_error_the_model_is_the_given_one(which, request):
    pipe = request.getfixturevalue(which)
    found = concept_output_attribution(pipe, TEXTS)
    with torch.no_grad():
        own = torch.stack([by_hand(pipe, text, lambda z: z) for text in TEXTS])
    np.testing.assert_array_equal(found.target, own.argmax(dim=1))
    np.testing.assert_allclose(found.logits, own.max(dim=1).values, atol=1e-4)
    np.testing.assert_allclose(found.logits, found.logits_replaced, atol=1e-4)
    without = concept_output_attribution(pipe, TEXTS, keep_error=False)
    np.testing.assert_allclose(without.logits, found.logits, atol=1e-4)
    assert np.abs(without.logits_replaced - found.logits).max() > 0.01


@pytest.mark.parametrize("which", ["encoder", "causal"])
@pytest.mark.parametrize("keep_error", [True, False])
def test_integrated_gradients_and_shapley_values_are_complete(which, keep_error, request):
    pipe = request.getfixturevalue(which)
    for method in COMPLETE:
        found = concept_output_attribution(
            pipe,
            TEXTS,
            attribution_method=method,
            keep_error=keep_error,
            n_steps=200,
            n_samples=2,
        )
        change = found.logits_replaced - found.logits_baseline
        sums = np.asarray(found.scores.sum(axis=1)).ravel()
        np.testing.assert_allclose(sums, change, atol=0.005 * np.abs(change).max())
        np.testing.assert_allclose(found.delta, sums - change, atol=1e-5)


@pytest.mark.parametrize("which", ["encoder", "causal"])
@pytest.mark.parametrize("method", METHODS)
def test_neither_batches_nor_padding_change_anything(which, method, request, monkeypatch):
    pipe = request.getfixturevalue(which)

    def scores(**params):
        params = {"n_steps": 6, "n_samples": 1, "random_state": 0} | params
        found = concept_output_attribution(pipe, TEXTS, attribution_method=method, **params)
        return np.concatenate([dense(found), found.delta[:, None]], axis=1)

    expected = scores(batch_size=1)
    close = {"atol": 1e-3 * np.abs(expected).max()}
    np.testing.assert_allclose(scores(batch_size=3), expected, **close)
    tokenizer = copy.deepcopy(pipe[0].tokenizer)
    tokenizer.padding_side = "left"
    np.testing.assert_allclose(scores(tokenizer=tokenizer), expected, **close)
    # Neither does it matter whether what comes before the layer is run once for all.
    monkeypatch.setattr(Readout, "_can_widen", lambda *_: False)
    monkeypatch.setattr(Readout, "_can_pick", lambda *_: False)
    np.testing.assert_allclose(scores(), expected, **close)


def test_what_comes_before_the_layer_is_run_once_where_that_works(encoder, causal, tiny_llama):
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(tiny_llama.config)
    config.pad_token_id, config.num_labels = 7, 3
    last = LlamaForSequenceClassification(config).eval()
    last.model.load_state_dict(tiny_llama.model.state_dict())
    seen = []
    original = Readout._can_widen

    def spy(self, ids):
        seen.append(original(self, ids))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readout, "_can_widen", spy)
        for pipe in (encoder, causal):
            concept_output_attribution(pipe, TEXTS[:1])
        given = {"model": last, "layer": 1, "tokenizer": causal[0].tokenizer}
        found, alone = (
            concept_output_attribution(
                causal[1], TEXTS, attribution_method="ablation", batch_size=n, **given
            )
            for n in (16, 1)
        )
    # This head takes one logit per text of the input.
    assert seen == [True, True, False, False]
    np.testing.assert_allclose(dense(found), dense(alone), atol=1e-4)
    np.testing.assert_allclose(found.logits, found.logits_replaced, atol=1e-4)


# -- rows of several tokens -------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "sum", "max", "first", "last", "signed_max"])
@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_rows_go_back_to_their_tokens(classifier, bert_tokenizer, granularity, aggregation):
    pipe = fitted(
        classifier, "layer.0", bert_tokenizer, granularity=granularity, aggregation=aggregation
    )
    text = TEXTS[1]
    found = concept_output_attribution(
        pipe, [text], attribution_method="ablation", per_position=True, target=1
    )
    codes = pipe.transform([text])
    np.testing.assert_allclose(found.activations.toarray(), codes.toarray(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.rows.start, codes.rows.start)
    np.testing.assert_array_equal(found.rows.units, codes.rows.units)
    inputs = bert_tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    spans = inputs.pop("offset_mapping")[0].numpy()
    row = 2
    inside = (
        np.flatnonzero(
            (spans[:, 0] >= codes.rows.start[row])
            & (spans[:, 1] <= codes.rows.end[row])
            & (spans[:, 1] > 0)
        )
        if granularity == "word"
        else np.flatnonzero(spans[:, 0] >= codes.rows.start[row := 1])
    )
    assert len(inside) > 1
    concept = codes[[row]].indices[0]
    change = codes[row, concept] * pipe[1].components_[concept]
    change = torch.from_numpy(change / (len(inside) if aggregation == "sum" else 1))

    def without(state):
        new = state.clone()
        new[0, inside] -= change
        return new

    with torch.no_grad():
        logit = classifier(**inputs).logits[0, 1]
        with replacing(classifier, "layer.0", without):
            expected = float(logit - classifier(**inputs).logits[0, 1])
    assert found.scores[row, concept] == pytest.approx(expected, abs=2e-5)


def test_the_cls_row(classifier, bert_tokenizer):
    pipe = fitted(classifier, "layer.0", bert_tokenizer, granularity="cls")
    found = concept_output_attribution(pipe, TEXTS, per_position=True)
    assert found.scores.shape == (4, 48)
    assert found.rows.units.tolist() == ["[CLS]"] * 4
    np.testing.assert_allclose(found.logits, found.logits_replaced, atol=1e-4)


def test_whole_texts_are_refused(classifier, bert_tokenizer, encoder):
    pipe = fitted(classifier, "layer.0", bert_tokenizer, granularity="sample")
    message = "a row of granularity='sample' would make all tokens of a text alike. Use 'token'"
    with pytest.raises(ValueError, match=message):
        concept_output_attribution(pipe, TEXTS)
    with pytest.raises(ValueError, match=message):
        concept_output_attribution(encoder, TEXTS, granularity="sample")
    words = concept_output_attribution(encoder, TEXTS, granularity="word", per_position=True)
    assert words.rows.units.tolist()[:4] == ["the", "sea", "is", "blue"]


# -- what is asked for ------------------------------------------------------------------------


def test_targets_by_number_by_name_and_for_each_text(encoder):
    names = ["sky", "sea", "state", "sky"]
    by_name = concept_output_attribution(encoder, TEXTS, target=names)
    by_number = concept_output_attribution(encoder, TEXTS, target=np.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(dense(by_name), dense(by_number))
    assert by_name.target_names == names
    one = concept_output_attribution(encoder, TEXTS[:2], target="sky")
    np.testing.assert_allclose(dense(one)[0], dense(by_name)[0], atol=1e-4)
    own = concept_output_attribution(encoder, TEXTS)
    again = concept_output_attribution(encoder, TEXTS, target=own.target)
    np.testing.assert_array_equal(dense(again), dense(own))
    for wrong, error, message in [
        ("moon", ValueError, "target='moon' is no label of BertForSequenceClassification: config"),
        (3, ValueError, "target=3 is out of range: BertForSequenceClassification has 3 classes"),
        ([0, 1], ValueError, "target must hold one entry for each of 4 texts. Got 2."),
        (1.5, TypeError, "target must be an int or a str, or a sequence .* Got float instead"),
        ([0, 1, 0, True], TypeError, "A target must be an int or a str. Got True"),
    ]:
        with pytest.raises(error, match=message):
            concept_output_attribution(encoder, TEXTS, target=wrong)
    with pytest.raises(ValueError, match="position=0 is for language models, and BertForSeq"):
        concept_output_attribution(encoder, TEXTS, position=0)


def test_tokens_and_positions(causal, tiny_llama, byte_tokenizer):
    text = TEXTS[1]
    ids = byte_tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = tiny_llama(ids).logits[0]
    sea = byte_tokenizer("e", add_special_tokens=False)["input_ids"]
    assert len(sea) == 1
    for position, at in [(None, -1), (-1, -1), (3, 3), ([5], 5), (-4, -4)]:
        for target in ("e", sea[0], [sea[0]]):
            found = concept_output_attribution(causal, [text], target=target, position=position)
            assert found.logits[0] == pytest.approx(float(logits[at, sea[0]]), abs=1e-4)
        own = concept_output_attribution(causal, [text], position=position)
        assert own.target[0] == int(logits[at].argmax())
        assert own.logits[0] == pytest.approx(float(logits[at].max()), abs=1e-4)
        assert own.target_names == [byte_tokenizer.decode([int(own.target[0])])]
    # What comes after the position plays no part in a causal model.
    early = concept_output_attribution(causal, [text], position=3, per_position=True)
    assert not dense(early)[4:].any() and dense(early)[:4].any()
    with pytest.raises(ValueError, match="'the sea is' is 5 tokens|target='the sea is' is"):
        concept_output_attribution(causal, [text], target="the sea is")
    with pytest.raises(ValueError, match=r"position=500 is out of range for texts\[0\], of \d+ to"):
        concept_output_attribution(causal, [text], position=500)
    with pytest.raises(TypeError, match="position must be an int, or one per text. Got 'a'"):
        concept_output_attribution(causal, [text], position=["a"])
    with pytest.raises(ValueError, match="target=300 is out of range: .* has 300 tokens|out of r"):
        concept_output_attribution(causal, [text], target=10**6)


def test_a_model_that_fills_in_tokens(tiny_bert, bert_tokenizer):
    from transformers import BertForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(copy.deepcopy(tiny_bert.config)).eval()
    model.bert.load_state_dict(tiny_bert.state_dict(), strict=False)
    pipe = fitted(model, "layer.0", bert_tokenizer)
    texts = ["the [MASK] is blue", "[MASK] sea"]
    found = concept_output_attribution(pipe, texts, target="sea")
    for text, logit in zip(texts, found.logits, strict=True):
        inputs = bert_tokenizer(text, return_tensors="pt")
        at = int((inputs["input_ids"][0] == bert_tokenizer.mask_token_id).nonzero())
        with torch.no_grad():
            own = model(**inputs).logits[0, at, bert_tokenizer.convert_tokens_to_ids("sea")]
        assert logit == pytest.approx(float(own), abs=1e-4)
    elsewhere = concept_output_attribution(pipe, texts, target="sea", position=1)
    assert elsewhere.logits[1] == pytest.approx(found.logits[1], abs=1e-5)
    assert elsewhere.logits[0] != pytest.approx(found.logits[0], abs=1e-3)
    with pytest.raises(
        ValueError, match=r"fills in tokens, and texts\[1\] has 0 mask tokens. Give"
    ):
        concept_output_attribution(pipe, [texts[0], "sea"])


@pytest.mark.parametrize("method", METHODS)
def test_chosen_concepts_are_scored_and_the_others_stay(bent, method):
    text = [TEXTS[0]]
    logit, live = by_switches(bent, text[0], target=0)
    some = live[1:4][::-1]
    found = concept_output_attribution(
        bent, text, some, target=0, attribution_method=method, n_samples=200, random_state=0
    )
    assert found.scores.shape == (1, 3)
    assert found.concepts.tolist() == some
    rest = set(live) - set(some)
    assert found.logits_baseline[0] == pytest.approx(logit(rest))
    assert found.logits_replaced[0] == pytest.approx(logit(live))
    if method in COMPLETE:
        assert found.scores.sum() == pytest.approx(logit(live) - logit(rest), abs=1e-4)
    else:
        every = concept_output_attribution(bent, text, target=0, attribution_method=method)
        np.testing.assert_allclose(dense(found)[0], dense(every)[0, some], rtol=1e-9)
    names = bent[-1].get_feature_names_out()[some]
    named = concept_output_attribution(
        bent, text, list(names), target=0, attribution_method=method, n_samples=200, random_state=0
    )
    np.testing.assert_array_equal(dense(named), dense(found))
    assert named.names.tolist() == names.tolist()


def test_concepts_that_do_not_exist_are_refused(toy):
    for wrong, error, message in [
        ([], ValueError, r"concepts=\[\] of concept_output_attribution names no concept. Give at"),
        (
            [1, 12],
            ValueError,
            "concepts=12 of .* is out of range: the SAE has 12 concepts, numbered from 0.",
        ),
        ("sea", ValueError, "concepts='sea' of .* is no feature name of the SAE"),
        ([3, 1, 3], ValueError, "concepts of concept_output_attribution names 3 more than once"),
        (
            [1.0],
            TypeError,
            "The .concepts. of .* must be the number or the feature name .* Got 1.0",
        ),
    ]:
        with pytest.raises(error, match=message):
            concept_output_attribution(toy, TEXTS, wrong)


def test_concepts_carry_the_names_of_later_steps(toy):
    pipe = make_pipeline(*[step for _, step in toy.steps], TopKInputs(k=2)).fit(TEXTS)
    found = concept_output_attribution(pipe, TEXTS)
    assert found.names.tolist() == pipe.get_feature_names_out().tolist()
    name = found.names[found.scores.indices[0]]
    assert concept_output_attribution(pipe, TEXTS, name).names.tolist() == [name]
    np.testing.assert_allclose(dense(found), dense(concept_output_attribution(toy, TEXTS)))


def test_shares(encoder):
    found = concept_output_attribution(encoder, TEXTS)
    shares = concept_output_attribution(
        encoder, TEXTS, attribution_method="concepts_x_gradients", normalize=True
    )
    magnitude = np.abs(dense(found)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(shares), dense(found) / magnitude, rtol=1e-5)
    np.testing.assert_array_equal(shares.delta, found.delta)


@pytest.mark.parametrize("method", ["integrated_gradients", "ablation", "shapley_sampling"])
def test_another_baseline(toy, method):
    baseline = np.zeros(12)
    baseline[[2, 7]] = 1.5, 0.5
    found = concept_output_attribution(
        toy, TEXTS, target=1, attribution_method=method, baseline=baseline, per_position=True
    )
    directions = toy[-1].components_ @ toy[0].model.head.weight.detach().numpy()[1]
    codes = found.activations.toarray()
    np.testing.assert_allclose(dense(found), (codes - baseline) * directions, atol=1e-5)
    np.testing.assert_allclose(found.delta, 0, atol=1e-4)


def test_choices_that_do_not_exist_are_refused(toy):
    for params, message in [
        ({"attribution_method": "sobol"}, "must be one of 'gradient_x_activation', .* Got 'sobol'"),
        ({"n_steps": 0}, "n_steps must be an int of at least 1. Got 0"),
        ({"n_samples": 1.5}, "n_samples must be an int of at least 1. Got 1.5"),
        ({"baseline": np.zeros(12)}, "'gradient_x_activation' looks at the codes as they are and"),
        (
            {"baseline": np.zeros(3), "attribution_method": "ablation"},
            r"baseline must hold one finite code for each of 12 concepts. Got shape \(3,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            concept_output_attribution(toy, TEXTS, **params)


# -- odd texts, odd pipelines -----------------------------------------------------------------


def test_texts_with_little_in_them(causal, encoder, byte_tokenizer):
    texts = ["", "a", TEXTS[0], "", "🐋"]
    for method in METHODS:
        params = {"attribution_method": method, "n_samples": 1, "n_steps": 3}
        found = concept_output_attribution(causal, texts, skip_first=1, **params)
        assert found.scores.shape == (5, 48)
        empty = np.isnan(found.logits)
        assert empty.tolist() == [True, False, False, True, False]
        assert found.target[empty].tolist() == [-1, -1]
        assert found.target_names[0] == ""
        assert np.diff(found.scores.indptr)[[0, 1, 3]].tolist() == [0, 0, 0]
        assert found.delta[1] == 0 and found.logits[1] == found.logits_replaced[1]
        found.top(2), found.top(2, overall=True)
    # With [CLS] and [SEP], a text without words has a class.
    found = concept_output_attribution(encoder, ["", "  "], per_position=True)
    assert found.scores.shape == (0, 48)
    assert not np.isnan(found.logits).any()
    assert len(found.to_frame()) == 0
    with pytest.raises(ValueError, match="None of the 2 texts has a token. Pass texts that have"):
        concept_output_attribution(causal, ["", ""])
    with pytest.raises(ValueError, match="minimum of 1 is required by concept_output_attribution"):
        concept_output_attribution(causal, [])


def test_long_texts_are_truncated_with_a_warning(causal):
    with pytest.warns(UserWarning, match="1 of 1 texts have more than 128 tokens and were trunc"):
        found = concept_output_attribution(causal, ["the sea " * 100], per_position=True)
    assert len(found.rows) == 128
    short = concept_output_attribution(causal, ["the sea " * 100], max_length=9)
    assert short.scores.nnz <= 36


def test_other_containers_of_codes(causal):
    expected = concept_output_attribution(causal, TEXTS)
    other = copy.deepcopy(causal)
    other[1].set_params(sparse_output=False)
    np.testing.assert_allclose(dense(concept_output_attribution(other, TEXTS)), dense(expected))
    other.set_output(transform="pandas")
    np.testing.assert_allclose(dense(concept_output_attribution(other, TEXTS)), dense(expected))


def test_pipelines_and_saes_give_the_same(causal, tiny_llama, byte_tokenizer, tmp_path):
    expected = concept_output_attribution(causal, TEXTS)
    given = {"model": tiny_llama, "layer": "layers.1", "tokenizer": byte_tokenizer}
    np.testing.assert_array_equal(
        dense(concept_output_attribution(causal[1], TEXTS, **given)), dense(expected)
    )
    tiny_llama.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    by_name = make_pipeline(Extractor(str(tmp_path), 1), causal[1]).fit(TEXTS)
    found = concept_output_attribution(by_name, TEXTS, target=expected.target)
    assert found.scores.shape == expected.scores.shape
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_models_without_a_head_are_refused(tiny_bert, tiny_bert_path, bert_tokenizer, classifier):
    pipe = fitted(tiny_bert, "layer.0", bert_tokenizer)
    with pytest.raises(
        ValueError, match="BertModel gives no logits.* Pass model=, as AutoModelFor"
    ):
        concept_output_attribution(pipe, TEXTS)
    np.testing.assert_allclose(
        concept_output_attribution(pipe, TEXTS, model=classifier).logits,
        concept_output_attribution(
            pipe[1], TEXTS, model=classifier, layer="layer.0", tokenizer=bert_tokenizer
        ).logits,
    )
    by_name = make_pipeline(Extractor(tiny_bert_path, "layer.0"), pipe[1]).fit(TEXTS)
    with pytest.raises(ValueError, match="was saved as BertModel. Pass model=, a model with a seq"):
        concept_output_attribution(by_name, TEXTS)
    with pytest.raises(TypeError, match="expects a fitted Pipeline .* Got list instead"):
        concept_output_attribution([], TEXTS)


def test_taggers_are_refused(tiny_bert, bert_tokenizer):
    from transformers import BertForTokenClassification

    tagger = BertForTokenClassification(tiny_bert.config)
    pipe = fitted(tagger, "layer.0", bert_tokenizer)
    with pytest.raises(ValueError, match="neither one for each class nor one for each token of"):
        concept_output_attribution(pipe, TEXTS)


def test_steps_that_are_not_affine_are_refused(bert_tokenizer):
    pipe = toy_pipe(bert_tokenizer, steps=[KeepRows(PowerTransformer())])
    with pytest.raises(
        ValueError, match="whose inverse is affine, such as KeepRows.StandardScaler"
    ):
        concept_output_attribution(pipe, TEXTS)


def test_captum_is_asked_for(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(
        ImportError, match=r"'captum', needed by .* pip install 'sksae\[attribution"
    ):
        concept_output_attribution(toy, TEXTS)


# -- what is handed in stays as it was --------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_models_stay_as_they_were(causal, tiny_llama, method):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16).train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = {n: (p.dtype, p.requires_grad, p.clone()) for n, p in model.named_parameters()}
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    found = concept_output_attribution(
        causal,
        TEXTS,
        model=model,
        attribution_method=method,
        n_steps=2,
        n_samples=1,
    )
    assert (torch.rand(1), np.random.rand()) == expected
    assert torch.is_grad_enabled()
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.logits, found.logits_replaced, rtol=0.05, atol=0.3)
    assert modes == [module.training for module in model.modules()]
    for name, parameter in model.named_parameters():
        dtype, tracked, value = before[name]
        assert (parameter.dtype, parameter.requires_grad) == (dtype, tracked)
        assert torch.equal(parameter, value) and parameter.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_stays_where_a_run_fails(causal, tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        concept_output_attribution(causal, TEXTS)
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in tiny_llama.modules())


def test_gradients_are_had_under_inference_mode_too(causal):
    expected = concept_output_attribution(causal, TEXTS)
    with torch.inference_mode():
        found = concept_output_attribution(causal, TEXTS)
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(dense(found), dense(expected))


def test_random_orders_are_repeatable(encoder):
    one, same, other = (
        dense(
            concept_output_attribution(
                encoder,
                TEXTS,
                attribution_method="shapley_sampling",
                n_samples=1,
                random_state=seed,
            )
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4


# -- results ----------------------------------------------------------------------------------


def test_the_table(encoder):
    found = concept_output_attribution(encoder, TEXTS, per_position=True)
    table = found.to_frame()
    assert list(table) == [
        *["text", "start", "end", "unit", "concept", "name", "activation", "score"]
    ]
    assert len(table) == found.scores.nnz == found.activations.nnz
    for line in table.iloc[::37].itertuples():
        (row,) = np.flatnonzero((found.rows.text == line.text) & (found.rows.start == line.start))
        assert found.scores[row, line.concept] == line.score
        assert found.activations[row, line.concept] == line.activation > 0
        assert TEXTS[line.text][line.start : line.end] == line.unit
    whole = concept_output_attribution(encoder, TEXTS)
    assert list(whole.to_frame()) == ["text", "concept", "name", "activation", "score"]
    sums = table.groupby(["text", "concept"])["score"].sum()
    lines = whole.to_frame().set_index(["text", "concept"])
    np.testing.assert_allclose(lines["score"], sums, atol=1e-4)
    largest = table.groupby(["text", "concept"])["activation"].max()
    np.testing.assert_allclose(lines["activation"], largest, rtol=1e-5)
    assert whole.rows.text.tolist() == [0, 1, 2, 3]
    assert list(whole.rows.units) == TEXTS
    assert repr(found) == (
        f"OutputAttribution('gradient_x_activation', {len(found.rows)} rows x 48 concepts, "
        f"{found.scores.nnz} scores)"
    )


def test_the_strongest(encoder):
    found = concept_output_attribution(encoder, TEXTS)
    top = found.top(3)
    assert top["text"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    scores = dense(found)
    for text, lines in top.groupby("text"):
        expected = np.sort(np.abs(scores[text]))[::-1][:3]
        np.testing.assert_array_equal(np.abs(lines["score"]), expected)
    assert (found.top(2, by="positive")["score"] > 0).all()
    assert (found.top(2, by="negative")["score"] < 0).all()
    overall = found.top(4, overall=True)
    means = scores.mean(axis=0)
    np.testing.assert_allclose(
        np.abs(overall["score"]), np.sort(np.abs(means))[::-1][:4], rtol=1e-5
    )
    counts = (found.activations.toarray() > 0).sum(axis=0)
    assert overall["n_texts"].tolist() == counts[overall["concept"]].tolist()
    each = concept_output_attribution(encoder, TEXTS, per_position=True)
    again = each.top(4, overall=True)
    np.testing.assert_allclose(again["score"], overall["score"], atol=1e-4)
    with pytest.raises(ValueError, match="by must be one of 'magnitude', .* Got 'size'"):
        found.top(by="size")


# -- insertion and deletion -------------------------------------------------------------------


@pytest.mark.parametrize("per_position", [False, True])
def test_curves_in_closed_form(toy, per_position):
    found = concept_output_attribution(toy, TEXTS, target=0, per_position=per_position)
    curves = insertion_deletion(toy, TEXTS, found, n_points=5, n_random=2, random_state=0)
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    scores, text = dense(found), found.rows.text
    for i in range(4):
        live = found.activations.toarray()[text == i] != 0
        ordered = np.sort(scores[text == i][live])[::-1]
        counts = np.round(curves.fractions * len(ordered)).astype(int)
        removed = np.array([ordered[:n].sum() for n in counts])
        np.testing.assert_allclose(curves.deletion[i], found.logits[i] - removed)
        np.testing.assert_allclose(curves.insertion[i], found.logits_baseline[i] + removed)
        area = np.mean([(a + b) / 2 for a, b in itertools.pairwise(curves.deletion[i])])
        assert curves.areas["deletion"][i] == pytest.approx(area)
    ends = [0, -1]
    np.testing.assert_allclose(curves.deletion_random[:, ends], curves.deletion[:, ends])
    np.testing.assert_allclose(curves.insertion_random[:, ends], curves.insertion[:, ends])
    areas = curves.to_dict()
    assert areas["deletion"] < areas["deletion_random"]
    assert areas["insertion"] > areas["insertion_random"]
    frame = curves.to_frame()
    np.testing.assert_allclose(frame["deletion"], curves.deletion.mean(axis=0))
    assert list(frame) == list(areas)
    assert repr(curves).startswith("InsertionDeletion(deletion=")


def test_curves_of_what_does_not_fit_are_refused(toy, causal):
    found = concept_output_attribution(toy, TEXTS, [1, 2], attribution_method="ablation")
    curves = insertion_deletion(toy, TEXTS, found, random_state=0)
    assert np.isnan(curves.deletion[2]).all()  # neither concept is active in "no"
    some = [0, 1, 3]
    np.testing.assert_allclose(curves.deletion[some, -1], found.logits_baseline[some])
    message = "inputs are not the texts that the attribution was made of"
    for texts in (TEXTS[:2], [*TEXTS[:3], "sea"]):
        with pytest.raises(ValueError, match=message):
            insertion_deletion(toy, texts, found)
    with pytest.raises(TypeError, match="must be what concept_output_attribution gives. Got list"):
        insertion_deletion(toy, TEXTS, [])
    with pytest.raises(ValueError, match="n_points must be an int of at least 2. Got 1"):
        insertion_deletion(toy, TEXTS, found, n_points=1)
    empty = concept_output_attribution(causal, ["", "a"], skip_first=1)
    curves = insertion_deletion(causal, ["", "a"], empty, n_random=1)
    assert np.isnan(curves.deletion).all()
