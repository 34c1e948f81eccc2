"""Losses and accuracies with hidden states replaced, against plain transformers."""

import copy
import inspect

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

from sksae import BaseSAE, BatchTopKSAE, Extractor, KeepRows, TopKInputs, TopKSAE
from sksae.activations._layers import find_layers
from sksae.intervention import SplicedLoss, spliced_accuracy, spliced_loss
from sksae.intervention import _splice as splice
from sksae.intervention._hooks import replacing

TEXTS = [
    "the sea is blue",
    "a hidden state is a vector, and the vector has many features",
    "models read tokens; they do not read",
    "no",
]
FEATURES = 32


class Stub(BaseSAE):
    """An SAE by its reconstruction alone: its codes are the rows, decoded by a function."""

    n_features_in_ = FEATURES
    _n_features_out = FEATURES

    def __init__(self, decode=lambda z: z):
        self.decode = decode

    def _module(self): ...

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, X, y=None):
        return self

    def encode(self, x):
        return x


@pytest.fixture(scope="module")
def word_tokenizer():
    """Words between [BOS] and [EOS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, "[UNK]": 3}
    words = {word: i + 4 for i, word in enumerate(dict.fromkeys(" ".join(TEXTS).split()))}
    backend = Tokenizer(models.WordLevel(specials | words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[BOS]", 1), ("[EOS]", 2)]
    backend.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
    )


@pytest.fixture
def acts(tiny_llama, byte_tokenizer):
    return Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)


@pytest.fixture
def measure(tiny_llama, byte_tokenizer):
    """Call spliced_loss on the tiny Llama with an SAE of this reconstruction."""

    def call(decode=lambda z: z, texts=TEXTS, **params):
        params = {"model": tiny_llama, "layer": 1, "tokenizer": byte_tokenizer} | params
        return spliced_loss(Stub(decode), texts, **params)

    return call


def shrunk(z):
    return 0.5 * z + 0.1


def by_hand(model, tokenizer, layer=1, replace=None, special=()):
    """Run one text at a time; give the mean nats of all tokens but the first and specials."""
    nats, n = 0.0, 0
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        labels = inputs["input_ids"].clone()
        for i in special:
            labels[labels == i] = -100
        kept = int((labels[:, 1:] != -100).sum())
        if not kept:
            continue
        handle = None
        if replace is not None:
            (module,) = find_layers(model, layer).values()
            handle = module.register_forward_hook(
                lambda _m, _a, out, ids=inputs["input_ids"]: replace(out, ids)
            )
        with torch.no_grad():
            nats += float(model(**inputs, labels=labels).loss) * kept
        n += kept
        if handle is not None:
            handle.remove()
    return nats / n, n


# -- the loss ---------------------------------------------------------------------------------


def test_the_clean_loss_is_that_of_transformers(measure, tiny_llama, byte_tokenizer):
    loss = measure(shrunk)
    ce, n_tokens = by_hand(tiny_llama, byte_tokenizer)
    assert loss.ce == pytest.approx(ce, rel=1e-5)
    assert loss.n_tokens == n_tokens
    assert n_tokens == sum(len(byte_tokenizer(text)["input_ids"]) - 1 for text in TEXTS)


def test_the_other_losses_by_hand(measure, tiny_llama, byte_tokenizer, acts):
    loss = measure(shrunk)
    mean = torch.from_numpy(np.asarray(acts.fit_transform(TEXTS)).mean(axis=0))
    for name, replace in {
        "ce_spliced": lambda out, _: shrunk(out),
        "ce_zero": lambda out, _: torch.zeros_like(out),
        "ce_mean": lambda out, _: mean.expand_as(out),
    }.items():
        expected = by_hand(tiny_llama, byte_tokenizer, replace=replace)[0]
        assert getattr(loss, name) == pytest.approx(expected, rel=1e-4), name
    recovered = (loss.ce_zero - loss.ce_spliced) / (loss.ce_zero - loss.ce)
    assert loss.loss_recovered == pytest.approx(recovered)
    recovered = (loss.ce_mean - loss.ce_spliced) / (loss.ce_mean - loss.ce)
    assert loss.loss_recovered_mean == pytest.approx(recovered)


def test_the_divergence_by_hand(measure, tiny_llama, byte_tokenizer):
    total, n = 0.0, 0
    for text in TEXTS:
        ids = byte_tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = tiny_llama(ids).logits[0, :-1].double().log_softmax(-1)
            with replacing(tiny_llama, 1, shrunk):
                q = tiny_llama(ids).logits[0, :-1].double().log_softmax(-1)
        total, n = total + float((p.exp() * (p - q)).sum()), n + len(p)
    assert measure(shrunk).kl == pytest.approx(total / n, rel=1e-4)


def test_a_perfect_reconstruction_recovers_everything(measure):
    loss = measure()
    assert loss.ce_spliced == loss.ce
    assert (loss.kl, loss.loss_recovered, loss.loss_recovered_mean) == (0, 1, 1)
    assert loss.ce not in (loss.ce_zero, loss.ce_mean)


def test_a_real_sae_with_the_axes_as_dictionary_is_perfect(acts):
    axes = torch.cat([torch.eye(FEATURES), -torch.eye(FEATURES)])
    sae = TopKSAE(
        2 * FEATURES,
        top_k=FEATURES,
        dictionary_params={"initializer": axes},
        encoder_init_norm=1.0,
        lr=1e-30,
        nb_epochs=1,
        random_state=0,
    )
    loss = spliced_loss(make_pipeline(acts, sae).fit(TEXTS), TEXTS)
    assert loss.ce_spliced == pytest.approx(loss.ce, abs=1e-5)
    assert loss.loss_recovered == pytest.approx(1, abs=1e-4)
    assert loss.kl == pytest.approx(0, abs=1e-6)


def test_zeros_recover_nothing(measure):
    loss = measure(torch.zeros_like)
    assert loss.ce_spliced == loss.ce_zero
    assert loss.loss_recovered == 0
    assert loss.kl > 0


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_neither_batches_nor_padding_change_anything(measure, byte_tokenizer, side, batch_size):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.padding_side = side
    loss = measure(shrunk, tokenizer=tokenizer, batch_size=batch_size).to_dict()
    alone = measure(shrunk, batch_size=1).to_dict()
    assert loss == pytest.approx(alone, rel=2e-4)


def test_small_buffers_change_nothing(measure, monkeypatch):
    whole = measure(shrunk).to_dict()
    for name in ("_LOGITS", "_STEP"):
        monkeypatch.setattr(splice, name, 20_000 if name == "_LOGITS" else 700)
    monkeypatch.setattr("sksae.intervention._site._CODES", 100)
    assert measure(shrunk).to_dict() == pytest.approx(whole, rel=2e-4)


def test_special_tokens_keep_their_states_and_are_not_predicted(
    measure, tiny_llama, word_tokenizer
):
    loss = measure(torch.zeros_like, tokenizer=word_tokenizer)
    specials = torch.tensor([0, 1, 2])

    def zeros(out, ids):
        return out * torch.isin(ids, specials)[..., None]

    ce, n_tokens = by_hand(tiny_llama, word_tokenizer, special=(0, 1, 2))
    assert (loss.n_tokens, n_tokens) == (sum(len(t.split()) for t in TEXTS),) * 2
    assert loss.ce == pytest.approx(ce, rel=1e-5)
    spliced = by_hand(tiny_llama, word_tokenizer, replace=zeros, special=(0, 1, 2))[0]
    assert loss.ce_spliced == pytest.approx(spliced, rel=1e-4)


def test_all_tokens_replaces_special_ones_too(measure, tiny_llama, word_tokenizer):
    loss = measure(torch.zeros_like, tokenizer=word_tokenizer, granularity="all_tokens")
    spliced, n_tokens = by_hand(
        tiny_llama, word_tokenizer, replace=lambda out, _: 0 * out, special=(0, 1, 2)
    )
    assert loss.ce_spliced == pytest.approx(spliced, rel=1e-4)
    assert loss.n_tokens == n_tokens


def test_the_first_tokens_keep_their_states(acts, tiny_llama, byte_tokenizer):
    pipe = make_pipeline(acts.set_params(skip_first=3), Stub(torch.zeros_like)).fit(TEXTS)
    loss = spliced_loss(pipe, TEXTS)

    def zeros(out, _):
        return torch.cat([out[:, :3], 0 * out[:, 3:]], dim=1)

    spliced = by_hand(tiny_llama, byte_tokenizer, replace=zeros)[0]
    assert loss.ce_spliced == loss.ce_zero == pytest.approx(spliced, rel=1e-4)
    assert loss.n_tokens == spliced_loss(pipe, TEXTS, skip_first=0).n_tokens
    assert spliced_loss(pipe, TEXTS, skip_first=0).ce_zero != pytest.approx(spliced, rel=1e-3)


def test_texts_are_cut_at_max_length(measure, acts):
    assert measure(max_length=5).n_tokens == sum(
        min(4, len(acts.tokenizer(text)["input_ids"]) - 1) for text in TEXTS
    )
    pipe = make_pipeline(acts.set_params(max_length=5, long_text="windows"), Stub()).fit(TEXTS)
    with pytest.warns(UserWarning, match="2 of 4 texts have more than 5 tokens and were truncated"):
        loss = spliced_loss(pipe, TEXTS)
    assert loss == measure(max_length=5)


def test_texts_of_one_token_count_for_nothing(measure):
    assert measure(texts=[*TEXTS, "a", ""]).to_dict() == pytest.approx(measure().to_dict())
    for texts in (["a", ""], ["a"]):
        with pytest.raises(ValueError, match=f"None of the {len(texts)} texts has a token to pred"):
            measure(texts=texts)
    with pytest.raises(ValueError, match="minimum of 1 is required by spliced_loss"):
        measure(texts=[])


def test_ablation_that_costs_nothing_recovers_nan(measure):
    assert np.isnan(measure(skip_first=1000, texts=TEXTS[:1]).loss_recovered)


def test_losses_are_worth_reading():
    loss = SplicedLoss(3.0, 3.25, 10.0, 7.123456, 0.2, 0.9642857, 0.94, 812)
    assert repr(loss) == (
        "SplicedLoss(ce=3, ce_spliced=3.25, ce_zero=10, ce_mean=7.123, kl=0.2, "
        "loss_recovered=0.9643, loss_recovered_mean=0.94, n_tokens=812)"
    )
    assert loss.to_dict()["loss_recovered"] == 0.9642857


# -- pipelines --------------------------------------------------------------------------------


def test_a_pipeline_gives_what_the_sae_gives(acts, tiny_llama, byte_tokenizer):
    sae = TopKSAE(48, top_k=4, nb_epochs=3, batch_size=64, random_state=0)
    pipe = make_pipeline(acts, sae, TopKInputs()).fit(TEXTS)
    loss = spliced_loss(pipe, TEXTS)
    assert loss == spliced_loss(
        pipe[1], TEXTS, model=tiny_llama, layer="layers.1", tokenizer=byte_tokenizer
    )
    assert loss.loss_recovered != 1


def test_steps_before_the_sae_are_undone(acts):
    pipe = make_pipeline(acts, KeepRows(StandardScaler()), Stub()).fit(TEXTS)
    assert spliced_loss(pipe, TEXTS).ce_spliced == pytest.approx(spliced_loss(pipe, TEXTS).ce)
    zero = make_pipeline(acts, KeepRows(StandardScaler()), Stub(torch.zeros_like)).fit(TEXTS)
    loss = spliced_loss(zero, TEXTS)
    assert loss.ce_spliced == pytest.approx(loss.ce_mean, rel=1e-4)
    without = zero[1:]
    given = {"model": acts.model, "layer": 1, "tokenizer": acts.tokenizer}
    assert spliced_loss(without, TEXTS, **given) == loss


def test_steps_fitted_on_frames_are_undone(acts):
    pipe = make_pipeline(acts, KeepRows(StandardScaler()), Stub())
    pipe[:2].set_output(transform="pandas")
    pipe.fit(TEXTS)
    assert spliced_loss(pipe, TEXTS).loss_recovered == pytest.approx(1, abs=1e-4)


def test_a_step_without_an_inverse_is_refused(acts):
    steps = [("acts", acts), ("norm", KeepRows(Normalizer())), ("sae", Stub())]
    message = r"step 'norm' \(KeepRows\) before the SAE has no inverse_transform. Use one that has"
    with pytest.raises(ValueError, match=message):
        spliced_loss(Pipeline(steps).fit(TEXTS), TEXTS)


def test_models_by_name_are_loaded_with_their_head(tiny_llama, byte_tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    pipe = make_pipeline(Extractor(str(tmp_path), 1), Stub(shrunk)).fit(TEXTS)
    assert pipe[0].layer_names_ == ["layers.1"]
    loss = spliced_loss(pipe, TEXTS)
    given = {"layer": 1, "tokenizer": byte_tokenizer}
    for model in (tiny_llama, str(tmp_path)):
        expected = spliced_loss(Stub(shrunk), TEXTS, model=model, **given).to_dict()
        assert loss.to_dict() == pytest.approx(expected, rel=1e-5)
        assert spliced_loss(pipe, TEXTS, model=model).to_dict() == pytest.approx(expected, rel=1e-5)


def test_models_without_a_head_are_refused(tiny_llama, tiny_gpt2, byte_tokenizer, tmp_path):
    headless = make_pipeline(Extractor(tiny_gpt2, 0, tokenizer=byte_tokenizer), Stub()).fit(TEXTS)
    message = r"GPT2Model gives no logits.* Pass model=, as AutoModelForCausalLM.from_pretrained"
    with pytest.raises(ValueError, match=message):
        spliced_loss(headless, TEXTS)
    tiny_llama.model.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    by_name = make_pipeline(Extractor(str(tmp_path), 1), Stub()).fit(TEXTS)
    with pytest.raises(ValueError, match="holds no weights for lm_head.weight"):
        spliced_loss(by_name, TEXTS)
    assert spliced_loss(by_name, TEXTS, model=tiny_llama).loss_recovered == 1


def test_models_that_are_no_causal_language_models_are_refused(tiny_bert, bert_tokenizer):
    from transformers import BertForMaskedLM, BertForTokenClassification

    masked = BertForMaskedLM(tiny_bert.config)
    given = {"layer": 0, "tokenizer": bert_tokenizer}
    with pytest.raises(ValueError, match="BertForMaskedLM sees the tokens that it is to predict"):
        spliced_loss(Stub(), TEXTS, model=masked, **given)
    tagger = BertForTokenClassification(tiny_bert.config)
    with pytest.raises(ValueError, match="not one for each token of the vocabulary"):
        spliced_loss(Stub(), TEXTS, model=tagger, **given)


def test_what_does_not_fit_is_refused(acts, tiny_llama, tiny_bert, byte_tokenizer, measure):
    with pytest.raises(TypeError, match="expects a fitted Pipeline .* Got list instead"):
        spliced_loss([], TEXTS)
    with pytest.raises(NotFittedError):
        spliced_loss(TopKSAE(), TEXTS, model=tiny_llama, layer=1)
    with pytest.raises(NotFittedError):
        spliced_loss(make_pipeline(acts, Stub()), TEXTS)
    with pytest.raises(ValueError, match="needs a pipeline with one SAE. This one has 0: Tra"):
        spliced_loss(make_pipeline(acts, PCA(2)), TEXTS)
    with pytest.raises(ValueError, match="got no extractor, so it needs model= and layer="):
        spliced_loss(Stub(), TEXTS)
    two = make_pipeline(Extractor(tiny_llama, [0, 1], tokenizer=byte_tokenizer), Stub()).fit(TEXTS)
    with pytest.raises(ValueError, match="the extractor gives 2 side by side. Fit a pipeline for"):
        spliced_loss(two, TEXTS)
    with pytest.raises(ValueError, match="hidden states of one layer. Got layer="):
        measure(layer=[0, 1])
    words = make_pipeline(acts.set_params(granularity="word"), Stub()).fit(TEXTS)
    message = "granularity='word' gives no row for each. Use one of 'token', 'all_tokens': in the"
    with pytest.raises(ValueError, match=message):
        spliced_loss(words, TEXTS)
    assert spliced_loss(words, TEXTS, granularity="token").loss_recovered == 1
    with pytest.raises(ValueError, match="has 48 features, and the SAE was fitted on 32"):
        measure(layer="layers.1.mlp.up_proj")


# -- what is handed in stays as it was --------------------------------------------------------


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_models_stay_as_they_were(measure, tiny_llama):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    loss = measure(shrunk, model=model)
    assert loss.ce == pytest.approx(measure(shrunk).ce, rel=0.05)
    assert modes == [module.training for module in model.modules()]
    assert before == {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert hooks_of(model) == []
    assert all(p.grad is None for p in model.parameters())


def test_hooks_go_where_the_run_fails(measure, tiny_llama):
    model = copy.deepcopy(tiny_llama).train()

    def broken(z):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure(broken, model=model)
    assert hooks_of(model) == []
    assert model.training


def test_blocks_nest_and_end(tiny_llama):
    ids = torch.tensor([[5, 6, 7]])
    plain = tiny_llama(ids).logits
    with pytest.raises(KeyError), replacing(tiny_llama, 1, lambda x: x + 1):
        raise KeyError
    with replacing(tiny_llama, 1, lambda x: 2 * x):
        doubled = tiny_llama(ids).logits
        with replacing(tiny_llama, 1, lambda x: x / 2), replacing(tiny_llama, 0, lambda x: x):
            torch.testing.assert_close(tiny_llama(ids).logits, plain)
        assert torch.equal(tiny_llama(ids).logits, doubled)
        assert not torch.allclose(doubled, plain)
    assert torch.equal(tiny_llama(ids).logits, plain)
    assert hooks_of(tiny_llama) == []
    with (
        replacing(tiny_llama, 1, lambda x: x[:, :1]),
        pytest.raises(ValueError, match=r"\(1, 3, 32\) cannot be replaced by ones of shape \(1, 1"),
    ):
        tiny_llama(ids)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "output", "named"])
def test_whatever_a_layer_gives_keeps_its_form(kind):
    from collections import namedtuple

    from transformers.modeling_outputs import BaseModelOutput

    state, other = torch.ones(1, 2, 3), torch.ones(4)
    output = {
        "tensor": state,
        "tuple": (other, state),
        "list": [state, other],
        "dict": {"x": other, "h": state},
        "output": BaseModelOutput(last_hidden_state=state),
        "named": namedtuple("Named", "x h")(other, state),
    }[kind]
    holder = nn.Sequential(_Gives(output))
    with replacing(holder, "0", lambda x: 3 * x):
        given = holder(None)
    assert type(given) is type(output)
    values = [given] if kind == "tensor" else list(getattr(given, "values", lambda: given)())
    assert sum(bool(torch.equal(value, 3 * state)) for value in values) == 1
    assert torch.equal(state, torch.ones(1, 2, 3))
    if kind == "output":
        assert torch.equal(given.last_hidden_state, 3 * state)
        assert torch.equal(output.last_hidden_state, state)


class _Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


# -- accuracy ---------------------------------------------------------------------------------

LABELS = ["sea", "state", "state", "sea"]


@pytest.fixture(scope="module")
def classifier(tiny_bert, bert_tokenizer):
    """The tiny BERT with a random head that puts two of the four texts in each class."""
    from transformers import BertForSequenceClassification

    config = copy.deepcopy(tiny_bert.config)
    config.label2id, config.id2label = {"sea": 0, "state": 1}, {0: "sea", 1: "state"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(tiny_bert.state_dict())
    with torch.no_grad():
        logits = [model(**bert_tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
        low, high = torch.stack(logits).diff(dim=1).flatten().sort().values[1:3]
        model.classifier.bias[0] += (low + high) / 2
    return model


def predicted(model, tokenizer, replace=None):
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            if replace is None:
                logits = model(**inputs).logits
            else:
                with replacing(model, "layer.0", lambda x, n=inputs: replace(x, n["input_ids"])):
                    logits = model(**inputs).logits
        found.append(int(logits.argmax()))
    return np.array(found)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("granularity", ["token", "all_tokens", "cls"])
def test_accuracy_by_hand(classifier, bert_tokenizer, granularity, batch_size):
    acts = Extractor(classifier, "layer.0", tokenizer=bert_tokenizer, granularity=granularity)
    pipe = make_pipeline(acts, Stub(lambda z: -z)).fit(TEXTS)
    y = np.array([0, 1, 1, 0])
    found = spliced_accuracy(pipe, TEXTS, y, batch_size=batch_size)
    cls, sep = bert_tokenizer.cls_token_id, bert_tokenizer.sep_token_id

    def replaced(ids):
        special = (ids == cls) | (ids == sep)
        return {"token": ~special, "all_tokens": ids >= 0, "cls": ids == cls}[granularity][
            ..., None
        ]

    rows = np.asarray(acts.fit_transform(TEXTS))
    mean = torch.from_numpy(rows.mean(axis=0))
    for name, fill in {
        "accuracy": lambda x: x,
        "accuracy_spliced": lambda x: -x,
        "accuracy_zero": lambda x: 0 * x,
        "accuracy_mean": mean.expand_as,
    }.items():
        expected = predicted(
            classifier, bert_tokenizer, lambda x, i, f=fill: torch.where(replaced(i), f(x), x)
        )
        assert getattr(found, name) == (expected == y).mean(), name
    assert found.n_texts == 4


def test_labels_by_name_and_perfect_reconstruction(classifier, bert_tokenizer):
    given = {"model": classifier, "layer": "layer.0", "tokenizer": bert_tokenizer}
    y = predicted(classifier, bert_tokenizer)
    names = np.array(["sea", "state"])[y]
    for labels in (y, names, list(names), y.astype(object), y.astype(bool)):
        found = spliced_accuracy(Stub(), TEXTS, labels, **given)
        assert found.accuracy == found.accuracy_spliced == 1
    zeros = {"granularity": "all_tokens"} | given
    # All states are zero, so all texts have one class; the texts have two.
    found = spliced_accuracy(Stub(torch.zeros_like), TEXTS, y, **zeros)
    assert set(y) == {0, 1}
    assert found.accuracy_spliced == found.accuracy_zero < 1
    assert found.accuracy_recovered == 0
    assert spliced_accuracy(Stub(), TEXTS, y, **zeros).accuracy_recovered == 1


def test_heads_that_read_the_first_token_find_no_padding_there(classifier, bert_tokenizer):
    y = predicted(classifier, bert_tokenizer)
    tokenizer = copy.deepcopy(bert_tokenizer)
    tokenizer.padding_side = "left"
    given = {"model": classifier, "layer": "layer.0", "tokenizer": tokenizer}
    found = spliced_accuracy(Stub(lambda z: -z), TEXTS, y, **given)
    alone = spliced_accuracy(Stub(lambda z: -z), TEXTS, y, batch_size=1, **given)
    assert found.to_dict() == pytest.approx(alone.to_dict(), nan_ok=True)
    assert found.accuracy == 1


def test_a_causal_classifier(byte_tokenizer, tiny_llama):
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(tiny_llama.config)
    config.pad_token_id = 7
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(tiny_llama.model.state_dict())
    y = predicted_at_the_end(model, byte_tokenizer)
    given = {"model": model, "layer": 1, "tokenizer": byte_tokenizer}
    for batch_size in (1, 8):
        found = spliced_accuracy(Stub(), TEXTS, y, batch_size=batch_size, **given)
        assert found.accuracy == found.accuracy_spliced == 1


def predicted_at_the_end(model, tokenizer):
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    return np.array([int(x.argmax()) for x in logits])


def test_labels_that_do_not_fit_are_refused(classifier, tiny_llama, bert_tokenizer):
    given = {"model": classifier, "layer": "layer.0", "tokenizer": bert_tokenizer}
    with pytest.raises(ValueError, match=r"one class for each of 4 texts. Got shape \(3,\)"):
        spliced_accuracy(Stub(), TEXTS, [0, 1, 1], **given)
    with pytest.raises(ValueError, match="classes 0 to 2, and BertForSequenceClassification has 2"):
        spliced_accuracy(Stub(), TEXTS, [0, 1, 2, 0], **given)
    with pytest.raises(ValueError, match="y holds 'sky', which config.label2id of BertFor"):
        spliced_accuracy(Stub(), TEXTS, ["sky", *LABELS[1:]], **given)


def test_what_cannot_classify_is_refused(classifier, tiny_bert, tiny_llama, byte_tokenizer):
    given = {"layer": 1, "tokenizer": byte_tokenizer}
    with pytest.raises(ValueError, match="not one for each of two classes or more"):
        spliced_accuracy(Stub(), TEXTS, [0, 1, 1, 0], model=tiny_llama, **given)
    with pytest.raises(ValueError, match=r"texts\[1\] has no tokens"):
        spliced_accuracy(Stub(), ["a", ""], [0, 1], model=tiny_llama, **given)


def test_a_classifier_without_its_head_is_refused(tiny_bert_path):
    pipe = make_pipeline(Extractor(tiny_bert_path, "layer.0"), Stub()).fit(TEXTS)
    with pytest.raises(ValueError, match="holds no weights for classifier.bias, classifier.weight"):
        spliced_accuracy(pipe, TEXTS, [0, 1, 1, 0])


def test_both_measures_take_the_same_parameters():
    loss, accuracy = (inspect.signature(f).parameters for f in (spliced_loss, spliced_accuracy))
    assert [name for name in accuracy if name != "y"] == list(loss)


# -- a real model -----------------------------------------------------------------------------

NEWS = [
    "The central bank raised interest rates again, and shares in London fell sharply.",
    "Shares of the oil company rose after it reported record profits for the quarter.",
    "The striker scored twice as England beat Wales in the rugby and football cups.",
    "She won the final in straight sets and will play in the Wimbledon semi-final.",
    "The minister told parliament that the new tax law would be delayed until spring.",
    "Voters in the election will choose between the prime minister and his rival.",
    "The phone maker showed a new mobile with a faster chip and a better camera.",
    "Hackers used a virus to steal passwords from users of the web browser.",
]


@pytest.mark.real
def test_an_sae_recovers_the_loss_on_texts_it_has_seen(full_smollm_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(full_smollm_path, dtype=torch.float32)
    acts = Extractor(model, 10, tokenizer=full_smollm_path, skip_first=1)
    sae = BatchTopKSAE(256, top_k=16, nb_epochs=60, batch_size=64, random_state=0)
    loss = spliced_loss(make_pipeline(acts, sae).fit(NEWS), NEWS)
    assert 3 < loss.ce < 5
    assert loss.ce - 0.1 < loss.ce_spliced < min(loss.ce_mean, loss.ce_zero)
    assert 0.8 < loss.loss_recovered < 1.05
    assert 0.5 < loss.loss_recovered_mean < 1.05
