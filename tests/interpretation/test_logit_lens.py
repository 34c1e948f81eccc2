import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from tokenizers import Tokenizer, decoders, models

from sksae import TopKSAE, TransformerActivationExtractor
from sksae.activations._rows import rows_of
from sksae.interpretation import LogitLens, TokenLogit

WORDS = ["[UNK]", "sea", "ship", "rock", " ", "\n"]
N_FEATURES = 4


def word_tokenizer(words=WORDS):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


PLAIN = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = {
    "Llama": ("LlamaForCausalLM", "hidden_size", PLAIN | {"num_key_value_heads": 2}),
    "Gemma": (
        "GemmaForCausalLM",
        "hidden_size",
        PLAIN | {"num_key_value_heads": 2, "head_dim": 8},
    ),
    "GPT2": ("GPT2LMHeadModel", "n_embd", {"n_layer": 1, "n_head": 2}),
    "GPTNeoX": ("GPTNeoXForCausalLM", "hidden_size", PLAIN),
    "OPT": (
        "OPTForCausalLM",
        "hidden_size",
        {
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 16,
            "word_embed_proj_dim": 32,
        },
    ),
    "Bert": ("BertForMaskedLM", "hidden_size", PLAIN),
    "Roberta": ("RobertaForMaskedLM", "hidden_size", PLAIN),
    "DistilBert": (
        "DistilBertForMaskedLM",
        "dim",
        {"n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    ),
}


def small(family, vocabulary=40, width=32):
    """Build a language model of random weights, those of its norms included."""
    import transformers

    name, size, settings = FAMILIES[family]
    make_config = getattr(transformers, f"{family}Config")
    # No special tokens beyond the small vocabulary.
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = make_config(vocab_size=vocabulary, **{size: width}, **settings, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name)(config)
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter)
    return model.eval()


def hand_set(weights, gains=(1.0, 1.0, 1.0, 1.0)):
    model = small("Llama", len(weights), N_FEATURES)
    model.lm_head.weight.data = torch.tensor(weights, dtype=torch.float32)
    model.model.norm.weight.data = torch.tensor(gains)
    return model


HEAD = [
    [-0.1, 0.1, 0.2, -3.0],
    [3.0, 0.0, 0.0, 0.0],
    [1.0, 2.0, 0.0, 0.0],
    [-2.0, 0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0, 4.0],
    [0.0, 0.0, -1.0, 5.0],
]


def lens(gains=(1.0, 1.0, 1.0, 1.0), components=None, **params):
    components = np.eye(N_FEATURES) if components is None else components
    return LogitLens(hand_set(HEAD, gains), components, tokenizer=word_tokenizer(), **params)


def as_dicts(found):
    return [{t.token: round(t.logit, 3) for t in side} for side in found]


def test_tokens_that_are_known_beforehand():
    found = lens(k=2).fit().interpretations_
    assert as_dicts(found[0]) == [{"sea": 3, "ship": 1}, {"rock": -2, "[UNK]": -0.1}]
    assert found[1].promoted[0] == TokenLogit("ship", 2, pytest.approx(2))
    assert found[1].suppressed[0] == TokenLogit(" ", 4, pytest.approx(-1))
    assert [t.token for t in found[3].promoted] == ["\n", " "]


def test_gains_of_the_final_norm_are_read():
    plain, turned = lens(k=1).fit(), lens(gains=(-2.0, 1.0, 1.0, 1.0), k=1).fit()
    assert as_dicts(plain.interpretations_[0]) == [{"sea": 3}, {"rock": -2}]
    assert as_dicts(turned.interpretations_[0]) == [{"rock": 4}, {"sea": -6}]
    without = lens(gains=(-2.0, 1.0, 1.0, 1.0), k=1, norm=None).fit()
    assert as_dicts(without.interpretations_[0]) == [{"sea": 3}, {"rock": -2}]
    assert (plain.norm_names_, without.norm_names_) == (["model.norm"], [])


def test_the_length_of_a_row_does_not_matter_its_sign_does():
    rows = [[0.1, 0, 0, 0], [-7.0, 0, 0, 0]]
    found = lens(components=rows, k=6).fit().interpretations_
    everything = {"sea": 3, "ship": 1, " ": 0, "\n": 0, "[UNK]": -0.1, "rock": -2}
    assert as_dicts(found[0])[0] == everything
    assert as_dicts(found[0])[0]["sea"] == -as_dicts(found[1])[1]["sea"]


def head_alone(model, family):
    """Give the function from hidden states to logits that the model itself uses, less biases."""
    norm = model.get_submodule(
        {
            "Llama": "model.norm",
            "Gemma": "model.norm",
            "GPT2": "transformer.ln_f",
            "GPTNeoX": "gpt_neox.final_layer_norm",
            "OPT": "model.decoder.final_layer_norm",
        }[family]
    )
    head = model.get_output_embeddings()

    def logits(hidden):
        with torch.no_grad():
            return head(norm(hidden)) - head(norm(torch.zeros_like(hidden)))

    return logits


@pytest.mark.parametrize("family", ["Llama", "Gemma", "GPT2", "GPTNeoX", "OPT"])
def test_it_reads_as_the_model_s_own_norm_and_head_do(family):
    model = small(family)
    directions = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    step = LogitLens(model, directions, tokenizer=byte_ids(40), k=40).fit()
    # So long that the epsilon of the norm does not count.
    logits = head_alone(model, family)(torch.tensor(directions) * 1000).numpy()
    for concept, found in step.interpretations_.items():
        expected = logits[concept]
        assert [t.id for t in found.promoted] == list(np.argsort(-expected))
        assert [t.id for t in found.suppressed] == list(np.argsort(expected))
        ratio = np.array([t.logit for t in found.promoted]) / np.sort(expected)[::-1]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
        assert ratio[0] > 0


def byte_ids(n):
    return word_tokenizer(["[UNK]", *(f"w{i}" for i in range(1, n))])


def test_logits_are_those_of_a_code_of_one_in_a_state_of_unit_size():
    """The model's own head, before and after a small step along the direction."""
    model = small("GPT2")
    rng = np.random.default_rng(0)
    direction = torch.tensor(rng.standard_normal(32))
    direction /= direction.norm()
    # No mean, of standard deviation 1, and at right angles to the centered direction.
    state = torch.tensor(rng.standard_normal(32))
    state -= state.mean()
    centered = direction - direction.mean()
    state -= (state @ centered) / (centered @ centered) * centered
    state /= state.square().mean().sqrt()
    norm, head = model.transformer.ln_f.double(), model.lm_head.double()
    with torch.no_grad():
        change = (head(norm(state + 1e-4 * direction)) - head(norm(state))) / 1e-4
    step = LogitLens(model, direction[None], tokenizer=byte_ids(40), k=40).fit()
    found = {t.id: t.logit for t in step.interpretations_[0].promoted}
    np.testing.assert_allclose([found[i] for i in range(40)], change, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_masked_heads_are_read_at_their_tangent(family):
    model = small(family)
    directions = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    step = LogitLens(model, directions, tokenizer=byte_ids(40), k=40).fit()
    paths = {
        "Bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        "Roberta": ("lm_head.dense", "lm_head.layer_norm"),
        "DistilBert": ("vocab_transform", "vocab_layer_norm"),
    }[family]
    dense, norm = map(model.get_submodule, paths)
    hidden = torch.tensor(directions) @ dense.weight.detach().T
    hidden = (hidden - hidden.mean(dim=1, keepdim=True)) * norm.weight.detach()
    logits = hidden @ model.get_output_embeddings().weight.detach().T
    for concept, found in step.interpretations_.items():
        assert [t.id for t in found.promoted] == logits[concept].argsort(descending=True).tolist()
    assert step.norm_names_ == list(paths)


def test_a_linear_layer_behind_the_norm_is_read_too():
    model = small("GPT2")
    model.projection = torch.nn.Linear(32, 16)
    model.transformer.ln_f.weight.data.uniform_(-1, 1)
    model.lm_head = torch.nn.Linear(16, 40, bias=False)
    directions = np.eye(32, dtype=np.float32)
    params = {"tokenizer": byte_ids(40), "k": 40}
    step = LogitLens(model, directions, norm=["transformer.ln_f", "projection"], **params).fit()
    centered = torch.eye(32) - 1 / 32
    hidden = (centered * model.transformer.ln_f.weight) @ model.projection.weight.T
    logits = (hidden @ model.lm_head.weight.T).detach()
    found = {t.id: t.logit for t in step.interpretations_[7].promoted}
    np.testing.assert_allclose([found[i] for i in range(40)], logits[7], rtol=1e-3, atol=1e-4)


def test_many_concepts_are_read_in_blocks(monkeypatch):
    from sksae.interpretation import _logit_lens

    directions = np.random.default_rng(0).standard_normal((11, N_FEATURES))
    whole = lens(components=directions).fit().to_frame()
    monkeypatch.setattr(_logit_lens, "_BLOCK_VALUES", 20)
    pd.testing.assert_frame_equal(lens(components=directions).fit().to_frame(), whole)


def test_names_are_the_first_promoted_tokens():
    step = lens(components=[[1.0, 0, 0, 0], [0, 0, 0.1, 1.0], [0, 0, 0, 0]], k=4).fit()
    assert list(step.get_feature_names_out())[1:] == ["1: ↵, ␣, rock", "2: (dead)"]
    assert list(step.get_feature_names_out())[0].startswith("0: sea, ship, ")
    chosen = lens(concepts_indices=[3], k=1).fit()
    assert list(chosen.get_feature_names_out()) == ["0", "1", "2", "3: ↵"]


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_codes_tell_dead_concepts_and_pass(kind):
    codes = kind([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    if sparse.issparse(codes):
        codes.data[0] = 0  # a zero that is stored is no activity either
        codes = sparse.csr_matrix(codes)
    step = lens(k=1)
    assert step.fit_transform(codes, [1, 2, 3]) is codes
    dead = {c for c, found in step.interpretations_.items() if found is None}
    assert dead == ({0, 1, 2} if sparse.issparse(codes) else {0, 2})
    everywhere_dead = lens().fit(kind(np.zeros((1, N_FEATURES))))
    assert set(everywhere_dead.interpretations_.values()) == {None}
    assert len(everywhere_dead.to_frame()) == 0


def test_table():
    table = lens(k=1, concepts_indices=[0]).fit().to_frame()
    expected = pd.DataFrame(
        {
            "concept": [0, 0],
            "effect": ["promoted", "suppressed"],
            "rank": [1, 1],
            "token": ["sea", "rock"],
            "id": [1, 3],
            "logit": [3.0, -2.0],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


def test_parts_of_characters_keep_the_tokenizer_s_spelling(byte_tokenizer, tiny_llama):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    step = LogitLens(tiny_llama, np.eye(32), tokenizer=tokenizer, k=300).fit()
    tokens = [t.token for t in step.interpretations_[0].promoted]
    assert len(tokens) == len(set(tokens)) == len(byte_tokenizer)
    assert not any("\ufffd" in t for t in tokens)
    assert any(t.startswith(" ") and t.strip() for t in tokens)


def test_ids_without_a_token_are_left_out():
    model = hand_set([*HEAD, [100.0] * 4])
    step = LogitLens(model, np.eye(4), tokenizer=word_tokenizer(), k=50).fit()
    assert {t.id for t in step.interpretations_[0].promoted} == set(range(6))


def test_half_precision_models():
    half = LogitLens(hand_set(HEAD).bfloat16(), np.eye(4), tokenizer=word_tokenizer(), k=2).fit()
    assert as_dicts(half.interpretations_[0]) == as_dicts(lens(k=2).fit().interpretations_[0])


def test_the_sae_of_the_pipeline(tiny_llama, byte_tokenizer):
    acts = TransformerActivationExtractor(tiny_llama, -1, tokenizer=byte_tokenizer)
    sae = TopKSAE(16, top_k=2, nb_epochs=1, random_state=0)
    reader = LogitLens(tiny_llama, sae, tokenizer=byte_tokenizer, k=3)
    pipe = Pipeline([("acts", acts), ("sae", sae), ("lens", reader)])
    texts = ["The sea is blue.", "A hidden state is a vector."]
    codes = pipe.fit_transform(texts, [0, 1])
    assert rows_of(codes).n_texts == 2
    alone = LogitLens(tiny_llama, sae.components_, tokenizer=byte_tokenizer, k=3).fit(codes)
    assert alone.interpretations_ == pipe[-1].interpretations_
    assert alone.interpretations_ == clone(alone).fit(codes).interpretations_
    assert None in alone.interpretations_.values()
    with pytest.raises(NotFittedError) as error:
        clone(pipe).fit(texts)
    assert str(error.value) == (
        "The components of LogitLens are those of a TopKSAE that is not fitted. Fit it before, or "
        "as an earlier step of the same pipeline; in a clone of a pipeline it is another object "
        "than that step: pass components=sae.components_."
    )


def test_clones_share_the_model_and_printing_is_short():
    step = lens()
    other = clone(step)
    assert other.model is step.model
    assert other.tokenizer is step.tokenizer
    assert "<LlamaForCausalLM" in repr(step)
    assert len(repr(step)) < 400
    assert step.get_params()["model"] is step.model
    fitted = step.fit()
    assert pickle.loads(pickle.dumps(fitted)).interpretations_ == fitted.interpretations_


def test_a_model_by_name_makes_small_pickles(tmp_path):
    model = hand_set(HEAD)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    step = LogitLens(str(tmp_path), np.eye(4), k=2, device="cpu").fit()
    assert step.interpretations_ == lens(k=2).fit().interpretations_
    assert len(pickle.dumps(step)) < 5000
    small("Bert").save_pretrained(tmp_path)
    byte_ids(40).save_pretrained(tmp_path)
    masked = LogitLens(str(tmp_path), np.eye(32), device="cpu").fit()
    assert masked.norm_names_[-1] == "cls.predictions.transform.LayerNorm"


def test_models_that_cannot_be_read(tiny_bert, bert_tokenizer):
    with pytest.raises(ValueError) as error:
        LogitLens(tiny_bert, np.eye(32), tokenizer=bert_tokenizer).fit()
    assert str(error.value) == (
        "LogitLens reads directions out through the model's output embeddings, and BertModel has "
        "none. Pass the model with its language head, as AutoModelForCausalLM or "
        "AutoModelForMaskedLM load it."
    )
    with pytest.raises(ValueError, match="and Linear has none"):
        LogitLens(torch.nn.Linear(2, 2), np.eye(2), tokenizer=bert_tokenizer).fit()
    model = hand_set(HEAD)
    model.model.final = model.model.norm
    del model.model.norm
    with pytest.raises(ValueError) as error:
        LogitLens(model, np.eye(4), tokenizer=word_tokenizer()).fit()
    assert str(error.value) == (
        "norm='auto' of LogitLens does not know where LlamaForCausalLM has its final norm. Pass "
        "norm=, its module path, or norm=None if there is none."
    )
    given = LogitLens(model, np.eye(4), tokenizer=word_tokenizer(), norm="final", k=1).fit()
    assert as_dicts(given.interpretations_[0]) == [{"sea": 3}, {"rock": -2}]


@pytest.mark.parametrize("wrong", ["model.layers.0.mlp", "model.embed_tokens", "mlp.act_fn"])
def test_modules_that_are_no_norm_are_refused(wrong):
    with pytest.raises(ValueError, match=r"is neither a linear layer nor a norm of 4 features\."):
        lens(norm=wrong).fit()


def test_dictionaries_that_do_not_fit():
    with pytest.raises(ValueError) as error:
        lens(components=np.eye(5)).fit()
    assert str(error.value) == (
        "The components of LogitLens have 5 features, and the hidden states of this model 4. Pass "
        "the dictionary of an SAE that was fitted on hidden states of this model."
    )
    with pytest.raises(ValueError) as error:
        lens().fit(np.ones((2, 3)))
    assert str(error.value) == (
        "X has 3 columns and the components of LogitLens 4 rows: one for each concept. Pass the "
        "codes and the dictionary of the same SAE."
    )
    with pytest.raises(ValueError, match=r"^LogitLens needs a dictionary\. Pass components="):
        LogitLens(hand_set(HEAD)).fit()
    with pytest.raises(ValueError, match="components of LogitLens must be finite"):
        lens(components=np.full((2, 4), np.nan)).fit()
    with pytest.raises(ValueError, match="contains NaN"):
        lens().fit(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match=r"^The 'k' parameter of LogitLens must be"):
        lens(k=0).fit()
    with pytest.raises(ValueError, match=r"^The 'concepts_indices' parameter of LogitLens"):
        lens(concepts_indices=4).fit()


@pytest.mark.real
def test_a_real_model_s_tokens_are_read_off_their_own_directions(full_smollm_path):
    """What sets a token's unembedding row apart from the mean row promotes that token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(full_smollm_path)
    model = AutoModelForCausalLM.from_pretrained(full_smollm_path, dtype=torch.float32).eval()
    weights = model.lm_head.weight.detach()
    ids = [*range(0, len(weights), 200), *tokenizer(" Monday")["input_ids"]]
    rows = weights[ids] - weights.mean(dim=0)
    found = LogitLens(model, torch.cat([rows, -rows]), k=5).fit().interpretations_
    assert np.mean([found[i].promoted[0].id == ids[i] for i in range(len(ids))]) > 0.85
    for i in range(len(ids)):
        assert found[i].promoted[0].id == found[i + len(ids)].suppressed[0].id
    days = {t.token for t in found[len(ids) - 1].promoted}
    assert {" Monday", " Tuesday", " Wednesday"} <= days
    with torch.no_grad():
        own = model.lm_head(model.model.norm(1000 * rows)).argmax(dim=1).tolist()
    assert [found[i].promoted[0].id for i in range(len(ids))] == own
