"""Edited concepts, against hidden states computed by hand."""

import copy

import numpy as np
import pytest
import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from torch import nn

from sksae import Extractor, KeepRows, TopKInputs, TopKSAE
from sksae.intervention import Add, Scale, intervene
from sksae.intervention._hooks import replacing

TEXTS = ["the sea is blue and a token is a vector", "models do not read"]


def logits(model, ids, **more):
    with torch.no_grad():
        return model(ids, **more).logits


def live(sae, state, n=2):
    """Give the concepts that are active most often on hidden states, no other as often as these."""
    codes = sae.transform(state.reshape(-1, state.shape[-1]))
    return np.argsort(-codes.getnnz(axis=0), kind="stable")[:n].tolist()


def by_hand(sae, state, change, keep_error=True, mean=0.0, scale=1.0):
    """Edit states in float64; ``change`` edits the codes in place."""
    x = state.double().reshape(-1, state.shape[-1]).numpy()
    codes = sae.transform((x - mean) / scale).toarray()
    edited = codes.copy()
    change(edited)
    dictionary = sae.components_.astype(np.float64)
    if keep_error:
        new = x + (edited - codes) @ dictionary * scale
    else:
        new = (edited @ dictionary + sae.decoder_bias_) * scale + mean
    return torch.from_numpy(new).reshape(state.shape)


# -- the arithmetic ---------------------------------------------------------------------------


def test_an_empty_block_changes_nothing(tiny_llama, sae, pipe, ids):
    plain = logits(tiny_llama, ids)
    for given in (sae, pipe):
        with intervene(tiny_llama, 1, given, {}):
            assert torch.equal(logits(tiny_llama, ids), plain)
    with intervene(tiny_llama, 1, sae, {}, keep_error=False):
        assert not torch.allclose(logits(tiny_llama, ids), plain)


@pytest.mark.parametrize("keep_error", [True, False])
def test_each_edit_by_hand(tiny_llama, sae, ids, state_at, keep_error):
    block = tiny_llama.model.layers[1]
    before = state_at(tiny_llama, block, input_ids=ids)
    a, b = live(sae, before)
    dead = int(np.flatnonzero(sae.transform(before.flatten(0, 1)).getnnz(axis=0) == 0)[0])

    def change(codes):
        codes[:, a], codes[:, b], codes[:, dead] = 0, codes[:, b] * 2, 1.5

    edits = {a: "ablate", b: Scale(2.0), dead: 1.5}
    with intervene(tiny_llama, 1, sae, edits, keep_error=keep_error):
        after = state_at(tiny_llama, block, input_ids=ids)
        out = logits(tiny_llama, ids)
    expected = by_hand(sae, before, change, keep_error)
    torch.testing.assert_close(after.double(), expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)
    with replacing(tiny_llama, 1, lambda x: expected.to(x)):
        torch.testing.assert_close(logits(tiny_llama, ids), out, atol=1e-4, rtol=1e-4)


def test_to_add_is_to_move_along_the_row_wherever_it_stands(tiny_llama, sae, ids, state_at):
    block = tiny_llama.model.layers[1]
    before = state_at(tiny_llama, block, input_ids=ids)
    with intervene(tiny_llama, 1, sae, {3: Add(2.5), 4: Add(-1)}):
        after = state_at(tiny_llama, block, input_ids=ids)
    rows = sae.get_dictionary()
    expected = (2.5 * rows[3] - rows[4]).expand_as(before)
    torch.testing.assert_close(after - before, expected, atol=1e-5, rtol=1e-5)


def test_edits_that_meet_nothing_change_nothing_exactly(tiny_llama, sae, ids, state_at):
    before = state_at(tiny_llama, tiny_llama.model.layers[1], input_ids=ids)
    silent = np.flatnonzero(sae.transform(before.flatten(0, 1)).getnnz(axis=0) == 0)
    plain = logits(tiny_llama, ids)
    edits = {int(silent[0]): "ablate", int(silent[1]): 0, int(silent[2]): Scale(50.0)}
    with intervene(tiny_llama, 1, sae, edits | {live(sae, before)[0]: Scale(1)}):
        assert torch.equal(logits(tiny_llama, ids), plain)


def test_many_rows_go_in_parts(tiny_llama, sae, ids, monkeypatch):
    def run():
        with intervene(tiny_llama, 1, sae, {3: 2.0}, keep_error=False):
            return logits(tiny_llama, ids)

    whole = run()
    monkeypatch.setattr("sksae.intervention._edits._CODES", 100)
    torch.testing.assert_close(run(), whole, atol=1e-5, rtol=1e-5)


def test_blocks_nest(tiny_llama, sae, ids, state_at):
    block = tiny_llama.model.layers[1]
    before = state_at(tiny_llama, block, input_ids=ids)
    a, b = live(sae, before)

    def first(codes):
        codes[:, a] = 3

    def second(codes):
        codes[:, b] *= 2

    expected = by_hand(sae, by_hand(sae, before, first), second)
    with intervene(tiny_llama, 1, sae, {a: 3.0}):
        with intervene(tiny_llama, 1, sae, {b: Scale(2)}):
            after = state_at(tiny_llama, block, input_ids=ids)
        alone = state_at(tiny_llama, block, input_ids=ids)
    torch.testing.assert_close(after.double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(alone.double(), by_hand(sae, before, first), atol=2e-5, rtol=1e-5)
    with intervene(tiny_llama, 0, sae, {a: 3.0}), intervene(tiny_llama, 1, sae, {b: Scale(2)}):
        both = logits(tiny_llama, ids)
    with replacing(tiny_llama, 0, lambda x: by_hand(sae, x, first).to(x)):
        middle = state_at(tiny_llama, block, input_ids=ids)
    with replacing(tiny_llama, 1, lambda x: by_hand(sae, middle, second).to(x)):
        torch.testing.assert_close(logits(tiny_llama, ids), both, atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_the_codes(sae, ids):
    layer = nn.Sequential(nn.Identity())
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    a, b = live(sae, x.detach())
    with intervene(layer, "0", sae, {a: Scale(3.0), b: 1.0}):
        (layer(x) * weight).sum().backward()
    found, x.grad = x.grad, None
    codes = sae.encode(x.flatten(0, 1))
    rows = sae.get_dictionary()
    new = x.flatten(0, 1) + 2 * codes[:, [a]] * rows[a] + (1 - codes[:, [b]]) * rows[b]
    (new * weight.flatten(0, 1)).sum().backward()
    torch.testing.assert_close(found, x.grad)
    assert not torch.allclose(found, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_keep_theirs(sae, dtype):
    layer = nn.Sequential(nn.Identity())
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    (a,) = live(sae, x.float(), 1)

    def change(codes):
        codes[:, a] = 4

    with intervene(layer, "0", sae, {a: 4.0}), torch.no_grad():
        new = layer(x)
    assert new.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(
        new.double(), by_hand(sae, x.float(), change), atol=tolerance, rtol=tolerance
    )
    if dtype == torch.float64:  # what float32 cannot hold is not lost
        tiny = x * 1e-9
        with intervene(layer, "0", sae, {a: Add(0.0)}), torch.no_grad():
            assert torch.equal(layer(x + tiny), x + tiny)


def test_autocast_does_not_reach_the_sae(sae):
    layer = nn.Sequential(nn.Identity())
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), intervene(layer, "0", sae, {2: 4.0}):
        plain = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), plain)


# -- pipelines --------------------------------------------------------------------------------


def test_a_pipeline_says_where(tiny_llama, pipe, sae, ids):
    with intervene(tiny_llama, 1, sae, {5: 3.0}):
        expected = logits(tiny_llama, ids)
    for model, layer in ((None, None), (tiny_llama, None), (None, 1)):
        with intervene(model, layer, pipe, {5: 3.0}):
            assert torch.equal(logits(tiny_llama, ids), expected)
    with intervene(None, 0, pipe, {5: 3.0}):
        assert not torch.allclose(logits(tiny_llama, ids), expected)


def test_concepts_by_name(tiny_llama, pipe, sae, ids):
    named = make_pipeline(*(step for _, step in pipe.steps), TopKInputs())
    named[-1].fit(pipe.transform(TEXTS))
    names = named.get_feature_names_out()
    with intervene(tiny_llama, 1, sae, {5: 3.0}):
        expected = logits(tiny_llama, ids)
    for name in ("topksae5", names[5], np.int64(5)):
        with intervene(tiny_llama, 1, named, {name: 3.0}):
            assert torch.equal(logits(tiny_llama, ids), expected)
    message = (
        r"intervene knows no concept 'sea'. Give the number of one, from 0 to 47, or its name, "
        r"such as 'topksae0'\."
    )
    with pytest.raises(ValueError, match=message), intervene(None, None, named, {"sea": 1.0}):
        pass
    with (
        pytest.raises(ValueError, match="name concept 5 more than once"),
        intervene(None, None, named, {5: 1.0, "topksae5": 2.0}),
    ):
        pass


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler])
def test_steps_before_the_sae_are_undone(
    tiny_llama, byte_tokenizer, ids, state_at, scaler, keep_error
):
    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
    sae = TopKSAE(40, top_k=5, nb_epochs=5, batch_size=32, device="cpu", random_state=0)
    pipe = make_pipeline(acts, KeepRows(scaler()), sae).fit(TEXTS)
    inner = pipe[1].transformer_
    mean, scale = (
        (inner.mean_, inner.scale_)
        if scaler is StandardScaler
        else (inner.data_min_, inner.data_range_)
    )
    block = tiny_llama.model.layers[1]
    before = state_at(tiny_llama, block, input_ids=ids)
    (a,) = live(sae, (before - torch.from_numpy(mean)) / torch.from_numpy(scale), 1)

    def change(codes):
        codes[:, a] *= 3

    expected = by_hand(sae, before, change, keep_error, mean, scale)
    with intervene(None, None, pipe, {a: Scale(3.0)}, keep_error=keep_error):
        after = state_at(tiny_llama, block, input_ids=ids)
    torch.testing.assert_close(after.double(), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


def test_gradients_stop_at_steps_that_let_none_pass(tiny_llama, byte_tokenizer, ids):
    for scaler, passes in ((StandardScaler(), True), (MinMaxScaler(), False)):
        acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
        sae = TopKSAE(40, top_k=5, nb_epochs=1, device="cpu", random_state=0)
        pipe = make_pipeline(acts, KeepRows(scaler), sae).fit(TEXTS)
        embeddings = tiny_llama.get_input_embeddings()(ids).detach().requires_grad_()
        with intervene(None, None, pipe, {3: 1.0}):
            loss = tiny_llama(inputs_embeds=embeddings).logits.square().sum()
        if passes:
            assert torch.autograd.grad(loss, embeddings)[0].abs().sum() > 0
        else:
            message = "No gradient passes through step 'keeprows' before the SAE"
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(loss, embeddings)


def test_only_rows_of_the_extractor_are_edited(tiny_bert, bert_tokenizer, state_at):
    from transformers import BertForMaskedLM

    model = BertForMaskedLM(tiny_bert.config).eval()
    batch = bert_tokenizer(TEXTS, return_tensors="pt", padding=True)
    special = torch.isin(batch["input_ids"], torch.tensor(bert_tokenizer.all_special_ids))
    unknown = batch["input_ids"] == bert_tokenizer.unk_token_id
    padding = batch["attention_mask"] == 0
    first = torch.zeros_like(padding)
    first[:, 0] = True
    expected = {
        ("token", 0): ~special | unknown,
        ("all_tokens", 0): ~padding,
        ("all_tokens", 2): ~padding & (torch.arange(padding.shape[1]) >= 2),
        ("cls", 0): first,
    }
    assert padding.any()
    for (granularity, skip_first), where in expected.items():
        acts = Extractor(
            tiny_bert,
            "layer.0",
            tokenizer=bert_tokenizer,
            granularity=granularity,
            skip_first=skip_first,
        )
        sae = TopKSAE(40, top_k=5, nb_epochs=1, device="cpu", random_state=0)
        pipe = make_pipeline(acts, sae).fit(TEXTS)
        block = model.bert.encoder.layer[0]
        before = state_at(model, block, **batch)
        with intervene(model, None, pipe, {3: Add(9.0)}):
            after = state_at(model, block, **batch)
        assert torch.equal((after != before).any(dim=-1), where)
        with intervene(model, None, pipe, {3: Add(9.0)}, positions=slice(None)):
            after = state_at(model, block, **batch)
        assert torch.equal((after != before).any(dim=-1), ~padding)


# -- what is handed in stays as it was ----------------------------------------------------------


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


def test_models_stay_as_they_were(tiny_llama, sae, ids):
    model = copy.deepcopy(tiny_llama).train()
    model.model.layers[0].eval().requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), intervene(model, 1, sae, {3: 2.0}):
        logits(model, ids)
        assert [module.training for module in model.modules()] == modes
        raise KeyError
    assert hooks_of(model) == []
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_pass_leaves_no_hook(tiny_llama, sae, ids):
    with (
        pytest.raises(ValueError, match="has 48 features, and the SAE was fitted on 32"),
        intervene(tiny_llama, "layers.1.mlp.up_proj", sae, {}),
    ):
        logits(tiny_llama, ids)
    assert hooks_of(tiny_llama) == []


def test_what_does_not_fit_is_refused(tiny_llama, sae, pipe, byte_tokenizer, tmp_path):
    def refused(error, message, *args, **kwargs):
        with pytest.raises(error, match=message), intervene(*args, **kwargs):
            pass
        assert hooks_of(tiny_llama) == []

    at = (tiny_llama, 1, sae)
    refused(TypeError, "'edits' parameter of intervene must be a dict.* Got", *at, [3])
    refused(TypeError, r"edit of concept 3 must be a number .* Got 'off' instead", *at, {3: "off"})
    refused(TypeError, "edit of concept 3 must be a number. Got True instead", *at, {3: True})
    refused(TypeError, "edit of concept 3 must be a number .* Got None", *at, {3: None})
    refused(ValueError, "edit of concept 3 must be finite. Got nan instead", *at, {3: np.nan})
    for concept in (48, -1, True, 1.0):
        refused(ValueError, f"intervene knows no concept {concept}. Give the", *at, {concept: 1})
    refused(TypeError, "torch module that runs in the block.* Got NoneType", None, 1, sae, {})
    refused(TypeError, "torch module .* Got 'gpt2' instead", "gpt2", 1, sae, {})
    refused(ValueError, "got no extractor, so it needs a layer", tiny_llama, None, sae, {})
    refused(ValueError, "states of one layer. Got layer=", tiny_llama, [0, 1], sae, {})
    refused(ValueError, "No module named 'layers.9'", tiny_llama, "layers.9", sae, {})
    refused(TypeError, "expects a fitted Pipeline .* Got NoneType", tiny_llama, 1, None, {})
    for number in (np.inf, "2", True):
        for edit in (Scale, Add):
            with pytest.raises((TypeError, ValueError), match=f"of {edit.__name__} must be"):
                edit(number)

    two = Extractor(tiny_llama, [0, 1], tokenizer=byte_tokenizer)
    wide = make_pipeline(two, TopKSAE(8, top_k=2, nb_epochs=1, random_state=0)).fit(TEXTS)
    refused(ValueError, "the extractor gives 2 side by side. Fit a pipeline", None, None, wide, {})
    words = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer, granularity="word").fit(TEXTS)
    by_word = make_pipeline(words, sae)
    message = r"learnt rows of granularity='word'. Pass positions, such as slice\(None\)"
    refused(ValueError, message, None, None, by_word, {})
    with intervene(None, None, by_word, {}, positions=slice(None)):
        pass
    steps = [("acts", pipe[0]), ("norm", KeepRows(Normalizer())), ("sae", sae)]
    refused(ValueError, "'norm' .* has no inverse_transform", None, None, Pipeline(steps), {})
