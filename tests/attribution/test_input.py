"""Attribution of concepts to their input, against closed forms and plain forward passes."""

import copy
import html
import itertools
import math
import re
import sys

import numpy as np
import pytest
import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sksae import (
    BatchTopKSAE,
    ConceptPooler,
    Extractor,
    KeepRows,
    TopKInputs,
    TopKSAE,
    VanillaSAE,
)
from sksae import attribution as package
from sksae.attribution import input_concept_attribution
from sksae.attribution._activation import pooled
from sksae.attribution._methods import METHODS
from sksae.attribution._surrogate import LeastSquares, shapley_kernel

from .conftest import summed_activation

TEXTS = [
    "the sea is blue",
    "a state is a vector. it has many features!",
    "sea",
    "models read tokens; they do not",
]
GRADIENT = [name for name, method in METHODS.items() if method.gradient]
LAYER = "encoder.layer.1"


@pytest.fixture(scope="module")
def bert_pipe(tiny_bert, bert_tokenizer):
    acts = Extractor(tiny_bert, LAYER, tokenizer=bert_tokenizer)
    sae = TopKSAE(24, top_k=6, nb_epochs=3, encoder_init_norm=1.0, random_state=0)
    return make_pipeline(acts, sae).fit(TEXTS)


@pytest.fixture(scope="module")
def llama_pipe(tiny_llama, byte_tokenizer):
    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
    return make_pipeline(acts, BatchTopKSAE(24, top_k=6, nb_epochs=3, random_state=0)).fit(TEXTS)


def strongest(pipe, text):
    """Number the concepts of a text, the most active first."""
    return np.argsort(-np.asarray(pipe.transform([text]).sum(axis=0)).ravel())


# -- the linear model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_form(linear_parts):
    """Give the gradient of the summed activation and the embeddings, by plain arithmetic."""
    sae, model = linear_parts["pipe_or_sae"], linear_parts["model"]
    tokenizer = linear_parts["tokenizer"]

    def give(text, concept):
        direction = sae.module_.linear_encoder.weight[concept].detach().double().numpy()
        through = direction @ model.mix.weight.detach().double().numpy()
        ids = tokenizer(text)["input_ids"]
        table = model.embedding.weight.detach().double().numpy()
        reached = np.full(len(ids), 1 + model.carried)
        reached[-1] = 1
        return reached[:, None] * through, table[ids], table[tokenizer.mask_token_id]

    return give


@pytest.mark.parametrize("method", list(METHODS))
def test_the_scores_of_a_linear_model_have_a_closed_form(method, linear_parts, closed_form):
    texts, concepts = ["red sea is big .", "blue sky", "green"], [2, 5]
    found = input_concept_attribution(
        **linear_parts,
        inputs=texts,
        concept=concepts,
        attribution_method=method,
        random_state=0,
        n_samples={"lime": 512, "kernel_shap": 64}.get(method, 20),
    )
    norm = {"saliency": 1, "smooth_grad": 1, "square_grad": 2}
    for i, text in enumerate(texts):
        for j, concept in enumerate(concepts):
            gradient, x, base = closed_form(text, concept)
            if method in norm:
                expected = np.linalg.norm(gradient, axis=1) ** norm[method]
            elif method == "var_grad":
                expected = np.zeros(len(x))
            elif method == "input_x_gradient":
                expected = (gradient * x).sum(axis=1)
            else:
                expected = (gradient * (x - base)).sum(axis=1)
            assert found[i][:, j] == pytest.approx(expected, abs=2e-3)


def test_a_zero_baseline_and_the_units_of_words_and_sentences(linear_parts, closed_form):
    text = "red sea . blue sky is big"
    call = {**linear_parts, "inputs": [text], "concept": 1, "baseline": "zero"}
    gradient, x, _ = closed_form(text, 1)
    tokens = (gradient * x).sum(axis=1)
    for method in ("integrated_gradients", "occlusion"):
        found = input_concept_attribution(**call, attribution_method=method, granularity="sentence")
        assert list(found.rows.units) == ["red sea .", "blue sky is big"]
        assert found.scores == pytest.approx([tokens[:3].sum(), tokens[3:].sum()], abs=2e-3)
        assert found.baseline == "zero"
    words = input_concept_attribution(**call, granularity="word")
    assert words.scores == pytest.approx(tokens, abs=2e-3)
    norm = input_concept_attribution(**call, attribution_method="saliency", granularity="sentence")
    assert norm.scores[0] == pytest.approx(np.linalg.norm(gradient[:3]), rel=1e-4)


def test_a_text_given_as_words(linear_parts, closed_form):
    found = input_concept_attribution(
        **linear_parts, inputs=[["red", "sea ."], ["sky"]], concept=1, granularity="word"
    )
    gradient, x, base = closed_form("red sea .", 1)
    tokens = (gradient * (x - base)).sum(axis=1)
    assert list(found.rows.units) == ["red", "sea .", "sky"]
    assert found[0] == pytest.approx([tokens[0], tokens[1] + tokens[2]], abs=2e-3)


# -- what is explained ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granularity", "aggregation"),
    [
        *[("token", "mean"), ("all_tokens", "mean"), ("cls", "mean"), ("sentence", "first")],
        *[("word", a) for a in ("mean", "max", "min", "sum", "signed_max", "first", "last")],
        *[("sample", a) for a in ("mean", "signed_max")],
    ],
)
def test_the_value_is_the_number_that_transform_gives(
    granularity, aggregation, tiny_bert, bert_tokenizer
):
    acts = Extractor(
        tiny_bert, LAYER, tokenizer=bert_tokenizer, granularity=granularity, aggregation=aggregation
    )
    pipe = make_pipeline(acts, TopKSAE(16, top_k=8, nb_epochs=2, random_state=0)).fit(TEXTS)
    codes = pipe.transform(TEXTS)
    concepts = [0, 3, 7]
    dense = codes[:, concepts].toarray()
    for reduction, reduce in {
        "sum": lambda rows: rows.sum(axis=0),
        "max": lambda rows: rows.max(axis=0),
        -1: lambda rows: rows[-1],
    }.items():
        found = input_concept_attribution(
            pipe, TEXTS, concepts, reduction=reduction, attribution_method="saliency"
        )
        expected = [reduce(dense[codes.rows.text == i]) for i in range(len(TEXTS))]
        assert found.values == pytest.approx(np.array(expected), rel=1e-4, abs=1e-4)


def test_two_layers_and_skipped_tokens(tiny_llama, byte_tokenizer):
    acts = Extractor(tiny_llama, [0, 2], tokenizer=byte_tokenizer, skip_first=2)
    pipe = make_pipeline(acts, TopKSAE(16, top_k=8, nb_epochs=2, random_state=0)).fit(TEXTS)
    codes = pipe.transform(TEXTS[1:2])
    found = input_concept_attribution(pipe, TEXTS[1:2], np.arange(16), n_steps=4)
    assert found.values[0] == pytest.approx(np.asarray(codes.sum(axis=0)).ravel(), rel=1e-4)
    assert len(found.rows) == codes.shape[0] + 2  # the tokens that are left out are units, too


def test_an_sae_alone_and_its_pipeline_are_one(bert_pipe, tiny_bert, bert_tokenizer):
    concept = int(strongest(bert_pipe, TEXTS[0])[0])
    by_pipe = input_concept_attribution(bert_pipe, TEXTS, concept)
    sae, pair = bert_pipe[-1], {"model": tiny_bert, "layer": LAYER, "tokenizer": bert_tokenizer}
    alone = input_concept_attribution(sae, TEXTS, concept, **pair)
    named = Pipeline([*bert_pipe.steps, ("names", TopKInputs(k=2).fit(bert_pipe.transform(TEXTS)))])
    name = named.get_feature_names_out()[concept]
    assert (alone.scores == by_pipe.scores).all()
    found = input_concept_attribution(named, TEXTS, name)
    assert (found.scores == by_pipe.scores).all()
    assert found.names == [name]
    assert input_concept_attribution(bert_pipe, TEXTS, f"topksae{concept}").concept == concept
    assert by_pipe.rows == bert_pipe[0].transform(TEXTS).rows


# -- truths of the methods --------------------------------------------------------------------


@pytest.mark.parametrize("side", ["bert", "llama"])
def test_integrated_gradients_are_complete_where_codes_are_continuous(side, request):
    bert = side == "bert"
    model = request.getfixturevalue("tiny_bert" if bert else "tiny_llama")
    tokenizer = request.getfixturevalue("bert_tokenizer" if bert else "byte_tokenizer")
    acts = Extractor(model, 1, tokenizer=tokenizer)
    pipe = make_pipeline(acts, VanillaSAE(24, nb_epochs=3, random_state=0)).fit(TEXTS)
    concepts = strongest(pipe, TEXTS[1])[:2]
    found = [input_concept_attribution(pipe, TEXTS[:2], concepts, n_steps=n) for n in (10, 100)]
    for one in found:
        total = np.array([one[i].sum(axis=0) for i in range(2)])
        assert one.delta == pytest.approx(total - (one.values - one.baseline_values), abs=1e-9)
    size = np.abs(found[1].values - found[1].baseline_values).max()
    assert np.abs(found[1].delta).max() < 0.02 * size
    assert np.abs(found[1].delta).mean() < np.abs(found[0].delta).mean()


def test_what_integrated_gradients_miss_are_the_jumps_of_selection(bert_pipe, tiny_bert):
    text, row = TEXTS[1], 3
    codes = bert_pipe.transform([text])
    concept = int(np.asarray(codes[row].todense()).argmax())
    found = input_concept_attribution(bert_pipe, [text], concept, reduction=row, n_steps=200)
    table, ends = tiny_bert.get_input_embeddings(), []
    mask = torch.tensor(bert_pipe[0].tokenizer.mask_token_id)
    on_the_way = []
    for alpha in np.linspace(0, 1, 301):

        def between(_m, _a, out, alpha=float(alpha)):
            out = out.clone()
            out[0, 1:-1] = (1 - alpha) * table.weight[mask] + alpha * out[0, 1:-1]
            return out

        handle = table.register_forward_hook(between)
        on_the_way.append(bert_pipe.transform([text])[row, concept])
        handle.remove()
    way = np.array(on_the_way)
    ends = (way[-1], way[0])
    assert (found.values[0], found.baseline_values[0]) == pytest.approx(ends, abs=1e-4)
    steps, switched = np.diff(way), np.diff(way > 0)
    jumps = steps[switched & (np.abs(steps) > 20 * np.median(np.abs(steps[~switched])))].sum()
    assert abs(jumps) > 0.1 * way[-1]  # there are some
    assert -found.delta[0] == pytest.approx(jumps, abs=0.05 * float(way[-1]))


def masked(ids, tokenizer, present):
    """Replace the tokens between [CLS] and [SEP] that are not present."""
    kept = [i if p else tokenizer.mask_token_id for i, p in zip(ids[1:-1], present, strict=True)]
    return [ids[0], *kept, ids[-1]]


def test_occlusion_and_kernel_shap_by_hand(bert_pipe, tiny_bert, bert_tokenizer):
    text, concept = TEXTS[0], int(strongest(bert_pipe, TEXTS[0])[0])
    ids = bert_tokenizer(text)["input_ids"]
    n = len(ids) - 2

    def value(present):
        changed = masked(ids, bert_tokenizer, present)
        return summed_activation(
            tiny_bert, LAYER, bert_pipe[-1], changed, concept, slice(1, len(ids) - 1)
        )

    game = {z: value(z) for z in itertools.product((0, 1), repeat=n)}
    full = (1,) * n
    without = [game[full] - game[full[:k] + (0,) + full[k + 1 :]] for k in range(n)]
    shapley = np.zeros(n)
    for z, k in itertools.product(game, range(n)):
        if not z[k]:
            weight = math.factorial(sum(z)) * math.factorial(n - sum(z) - 1) / math.factorial(n)
            shapley[k] += weight * (game[z[:k] + (1,) + z[k + 1 :]] - game[z])
    found = input_concept_attribution(bert_pipe, [text], concept, attribution_method="occlusion")
    assert found.scores == pytest.approx(without, abs=1e-4 * found.values[0])
    assert found.baseline == "[MASK]"
    assert found.baseline_values[0] == pytest.approx(game[(0,) * n], abs=1e-4)
    exact = input_concept_attribution(bert_pipe, [text], concept, attribution_method="kernel_shap")
    assert exact.scores == pytest.approx(shapley, abs=1e-3 * np.abs(shapley).max())
    assert np.abs(exact.delta).max() < 1e-4 * found.values[0]
    sampled = input_concept_attribution(
        bert_pipe,
        [text],
        concept,
        attribution_method="kernel_shap",
        n_samples=2**n - 1,
        random_state=0,
    )
    assert np.corrcoef(sampled.scores, shapley)[0, 1] > 0.9


def test_saliency_is_the_slope(bert_pipe, tiny_bert):
    text, concept = TEXTS[1], int(strongest(bert_pipe, TEXTS[1])[0])
    found = input_concept_attribution(bert_pipe, [text], concept, attribution_method="saliency")
    table, step = tiny_bert.get_input_embeddings(), 1e-3
    token = int(np.argmax(found.scores))
    slopes = []
    for axis in range(table.embedding_dim):
        ends = []
        for sign in (1, -1):

            def nudge(_m, _a, out, axis=axis, sign=sign):
                out = out.clone()
                out[0, token + 1, axis] += sign * step
                return out

            handle = table.register_forward_hook(nudge)
            codes = bert_pipe.transform([text])
            handle.remove()
            ends.append(codes[:, [concept]].sum())
        slopes.append((ends[0] - ends[1]) / (2 * step))
    assert np.linalg.norm(slopes) == pytest.approx(found.scores[token], rel=0.05)


def test_noise_that_vanishes_leaves_saliency(bert_pipe):
    concept = int(strongest(bert_pipe, TEXTS[0])[0])
    call = {"pipe_or_sae": bert_pipe, "inputs": TEXTS, "concept": concept, "noise": 0.0}
    call |= {"n_samples": 3, "random_state": 0}
    plain = input_concept_attribution(**call, attribution_method="saliency").scores
    smooth = input_concept_attribution(**call, attribution_method="smooth_grad").scores
    square = input_concept_attribution(**call, attribution_method="square_grad").scores
    var = input_concept_attribution(**call, attribution_method="var_grad").scores
    assert smooth == pytest.approx(plain, rel=1e-4)
    assert square == pytest.approx(plain**2, rel=1e-4)
    assert np.abs(var).max() < 1e-5 * np.abs(square).max()


# -- what must not matter ---------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
def test_batches_padding_and_company_change_nothing(method, bert_pipe, llama_pipe):
    for pipe in (bert_pipe, llama_pipe):
        concepts = strongest(pipe, TEXTS[1])[:2]
        call = {"attribution_method": method, "random_state": 3, "n_samples": 12, "n_steps": 5}
        found = input_concept_attribution(pipe, TEXTS, concepts, batch_size=64, **call)
        atol = 2e-4 * np.abs(found.scores).max()
        small = input_concept_attribution(pipe, TEXTS, concepts, batch_size=2, **call)
        assert small.scores == pytest.approx(found.scores, abs=atol)
        alone = input_concept_attribution(pipe, TEXTS[:1], concepts, batch_size=5, **call)
        assert alone[0] == pytest.approx(found[0], abs=atol)  # the first seed is the same
        if METHODS[method].random:
            other = input_concept_attribution(pipe, TEXTS, concepts, **{**call, "random_state": 4})
            assert not np.allclose(other.scores, found.scores)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_the_side_of_the_padding_changes_nothing(method, tiny_llama, byte_tokenizer, llama_pipe):
    left = copy.deepcopy(byte_tokenizer)
    left.padding_side, left.pad_token = "left", "<|endoftext|>"
    concepts = strongest(llama_pipe, TEXTS[1])[:2]
    call = {"attribution_method": method, "baseline": "zero", "n_steps": 4}
    right = input_concept_attribution(llama_pipe, TEXTS, concepts, **call)
    found = input_concept_attribution(llama_pipe, TEXTS, concepts, tokenizer=left, **call)
    assert found.scores == pytest.approx(right.scores, abs=2e-4 * np.abs(right.scores).max())


@pytest.mark.parametrize("method", [*GRADIENT, "occlusion"])
def test_what_comes_later_has_no_say_in_a_causal_model(method, llama_pipe):
    text, row = TEXTS[1], 9
    concept = int(np.asarray(llama_pipe.transform([text])[row].todense()).argmax())
    found = input_concept_attribution(
        llama_pipe,
        [text],
        concept,
        reduction=row,
        attribution_method=method,
        n_samples=8,
        random_state=0,
    )
    assert found.scores[: row + 1].any()
    later = np.abs(found.scores[row + 1 :])
    assert (later == 0).all() if method in GRADIENT else later.max() < 1e-5 * found.values[0]


def test_models_and_generators_are_left_as_they_were(bert_pipe, tiny_bert):
    tiny_bert.train()
    grads = [p.grad for p in tiny_bert.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for method in ("smooth_grad", "gradient_shap", "kernel_shap"):
        input_concept_attribution(
            bert_pipe, TEXTS, 0, attribution_method=method, n_samples=4, random_state=0
        )
    with pytest.raises(ValueError, match="no token id"):
        input_concept_attribution(bert_pipe, TEXTS, 0, baseline=-1)
    assert tiny_bert.training
    tiny_bert.eval()
    assert all(p.requires_grad for p in tiny_bert.parameters())
    assert [p.grad for p in tiny_bert.parameters()] == grads
    assert not any(m._forward_hooks for m in tiny_bert.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype, bert_pipe, tiny_bert):
    concept = int(strongest(bert_pipe, TEXTS[1])[0])
    exact = input_concept_attribution(bert_pipe, TEXTS, concept, attribution_method="saliency")
    model = copy.deepcopy(tiny_bert).to(dtype)
    for method in ("saliency", "occlusion"):
        found = input_concept_attribution(
            bert_pipe, TEXTS, concept, model=model, attribution_method=method
        )
        assert found.values == pytest.approx(exact.values, rel=0.1)
        assert found.scores.dtype == np.float64
        assert np.isfinite(found.scores).all()


def test_the_gradients_of_a_caller_do_not_matter(bert_pipe):
    concept = int(strongest(bert_pipe, TEXTS[1])[0])
    call = {"pipe_or_sae": bert_pipe, "inputs": TEXTS, "concept": concept, "n_steps": 4}
    found = input_concept_attribution(**call).scores
    with torch.inference_mode():
        assert (input_concept_attribution(**call).scores == found).all()
    with torch.no_grad():
        assert (input_concept_attribution(**call).scores == found).all()


# -- odd input --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "occlusion", "kernel_shap"])
def test_texts_without_units(method, bert_pipe, llama_pipe):
    texts = ["", "the sea", "  \n ", "naïve 😀🇫🇷 ﷽"]
    for pipe in (bert_pipe, llama_pipe):
        concepts = strongest(pipe, texts[3])[:2]
        found = input_concept_attribution(
            pipe, texts, concepts, attribution_method=method, n_steps=3, n_samples=16
        )
        assert len(found) == 4
        assert found[0].shape == (0, 2)
        assert not found.values[0].any()
        assert found.rows == pipe[0].transform(texts).rows
        cells = re.findall(r"<td dir[^>]*>(.*?)</td>", found.to_html())
        shown = html.unescape(re.sub("<.*?>", "", cells[3]))
        assert shown.replace("␣", " ") == texts[3]
    with pytest.warns(UserWarning, match=r"The concept is off in all 1 inputs, so that scores"):
        nothing = input_concept_attribution(bert_pipe, [""], 0, attribution_method=method)
    assert nothing.scores.shape == (0,)


def test_a_dead_concept_has_no_scores(bert_pipe):
    pipe = copy.deepcopy(bert_pipe)
    with torch.no_grad():
        pipe[-1].module_.linear_encoder.bias[[4, 5]] = -1e4
    for method in METHODS:
        with pytest.warns(
            UserWarning,
            match=r"The concepts are off in all 2 inputs, so that scores tell at most what "
            r"keeps them off: topksae4, topksae5\.",
        ):
            found = input_concept_attribution(
                pipe, TEXTS[:2], [4, 5], attribution_method=method, n_samples=8
            )
        assert not found.scores.any()


def test_long_texts_are_truncated(bert_pipe):
    long = ["the sea " * 60]
    with pytest.warns(UserWarning, match="Pass max_length to input_concept_attribution to say so"):
        found = input_concept_attribution(bert_pipe, long, 0, attribution_method="saliency")
    assert len(found[0]) == 62  # of 64 positions, two are for special tokens
    said = input_concept_attribution(
        bert_pipe, long, [0, 1, 2], attribution_method="saliency", max_length=10
    )
    assert said.scores.shape == (8, 3)


def test_progress(bert_pipe, capsys):
    input_concept_attribution(bert_pipe, TEXTS, 0, attribution_method="saliency", verbose=True)
    assert "4/4" in capsys.readouterr().err


# -- steps in between -------------------------------------------------------------------------


def test_steps_without_gradients(tiny_bert, bert_tokenizer):
    acts = Extractor(tiny_bert, LAYER, tokenizer=bert_tokenizer)
    scaled = KeepRows(StandardScaler())
    pipe = make_pipeline(acts, scaled, TopKSAE(16, top_k=8, nb_epochs=2, random_state=0)).fit(TEXTS)
    codes = pipe.transform(TEXTS[:1])
    found = input_concept_attribution(pipe, TEXTS[:1], [0, 1], attribution_method="occlusion")
    assert found.values[0] == pytest.approx(
        np.asarray(codes[:, [0, 1]].sum(axis=0)).ravel(), rel=1e-4
    )
    with pytest.raises(ValueError, match="needs gradients") as caught:
        input_concept_attribution(pipe, TEXTS, 0)
    assert str(caught.value) == (
        "attribution_method='integrated_gradients' needs gradients, and the steps between the "
        "extractor and the SAE have none: KeepRows. Use one of 'occlusion', 'lime', "
        "'kernel_shap', or a pipeline without these."
    )
    framed = make_pipeline(acts, KeepRows(StandardScaler()), TopKSAE(16, top_k=8, nb_epochs=2))
    framed.set_params(topksae__sparse_output=False).set_output(transform="pandas").fit(TEXTS)
    total = framed.transform(TEXTS[:1]).sum(axis=0).to_numpy()[:2]
    in_frames = input_concept_attribution(framed, TEXTS[:1], [0, 1], attribution_method="occlusion")
    assert in_frames.values[0] == pytest.approx(total, rel=1e-4)
    pooling = make_pipeline(acts, ConceptPooler(), TopKSAE(4, top_k=2, random_state=0)).fit(TEXTS)
    with pytest.raises(ValueError, match="Let the extractor do so: granularity='sample'."):
        input_concept_attribution(pooling, TEXTS, 0, attribution_method="lime")


# -- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"concept": 24},
            "concept=24 of input_concept_attribution is out of range: the SAE has 24",
        ),
        ({"concept": -1}, "concept=-1 of input_concept_attribution is out of range"),
        ({"concept": "topksae33"}, "is no feature name of the SAE; did you mean 'topksae3'?"),
        ({"concept": []}, "concept=[] of input_concept_attribution names no concept."),
        ({"concept": [0, 1.5]}, "must be the number or the feature name of a concept, or a list"),
        ({"attribution_method": "sobol"}, "captum has no counterpart of interpreto's Sobol."),
        ({"attribution_method": None}, "must be one of 'saliency', 'input_x_gradient', "),
        ({"granularity": "cls"}, "The 'granularity' parameter of input_concept_attribution must"),
        ({"n_steps": 0}, "The 'n_steps' parameter of input_concept_attribution must be an int"),
        (
            {"reduction": 5},
            "reduction=5 of input_concept_attribution asks for a row that inputs[0]",
        ),
        (
            {"baseline": 9999},
            "baseline=9999 of input_concept_attribution is no token id: the model",
        ),
        ({"inputs": "one"}, "input_concept_attribution expects a sequence of texts. Got a single"),
        ({"inputs": []}, "while a minimum of 1 is required by input_concept_attribution."),
        ({"layer": "layer.0.intermediate"}, "has 48 features, and the SAE was fitted on 32."),
    ],
)
def test_messages(params, message, bert_pipe):
    call = {"inputs": ["the sea"], "concept": 0} | params
    with pytest.raises((ValueError, TypeError)) as caught:
        input_concept_attribution(bert_pipe, **call)
    assert message in str(caught.value)


def test_more_messages(bert_pipe, llama_pipe, linear_parts, monkeypatch):
    with pytest.raises(ValueError, match="got no extractor, so it needs model= and layer="):
        input_concept_attribution(bert_pipe[-1], TEXTS, 0)
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token, and this"):
        input_concept_attribution(llama_pipe, TEXTS, 0, baseline="mask")
    monkeypatch.setattr(type(linear_parts["model"]), "get_input_embeddings", lambda self: None)
    with pytest.raises(ValueError, match="LinearModel names none: its get_input_embeddings"):
        input_concept_attribution(**linear_parts, inputs=["sea"], concept=0)


def test_without_captum(monkeypatch, bert_pipe):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError) as caught:
        input_concept_attribution(bert_pipe, TEXTS, 0)
    assert str(caught.value) == (
        "Missing optional dependency 'captum', needed by sksae.attribution. Try: pip install "
        "'sksae[attribution]'."
    )


def test_classes_stand_for_their_names(bert_pipe):
    from captum.attr import InputXGradient

    concept = int(strongest(bert_pipe, TEXTS[0])[0])
    by_class = input_concept_attribution(
        bert_pipe, TEXTS, concept, attribution_method=InputXGradient
    )
    assert by_class.method == "input_x_gradient"
    with pytest.raises(ValueError, match="Got <class 'sksae"):
        input_concept_attribution(
            bert_pipe, TEXTS, concept, attribution_method=package.InputAttribution
        )


# -- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "max", "min", "sum", "signed_max"])
def test_pooling_has_gradients(aggregation):
    values = torch.tensor([[1.0, -3.0], [2.0, 1.0], [5.0, 5.0]], requires_grad=True)
    out = pooled(values, torch.tensor([0, 0, 1]), torch.tensor([2.0, 1.0]), aggregation)
    reduce = {
        "mean": [[1.5, -1.0], [5.0, 5.0]],
        "max": [[2.0, 1.0], [5.0, 5.0]],
        "min": [[1.0, -3.0], [5.0, 5.0]],
        "sum": [[3.0, -2.0], [5.0, 5.0]],
        "signed_max": [[2.0, -3.0], [5.0, 5.0]],
    }
    assert out.tolist() == reduce[aggregation]
    out.sum().backward()
    share = {"sum": 4.0, "mean": 2.0}.get(aggregation, 2.0)
    assert values.grad[:2].sum() == share


def test_the_surrogate_is_linear_regression():
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    Z, y, w = rng.integers(0, 2, (40, 5)), rng.standard_normal(40), rng.random(40)
    model = LeastSquares()
    model.fit([(torch.tensor(Z), torch.tensor(y), torch.tensor(w))])
    expected = LinearRegression().fit(Z, y, sample_weight=w).coef_
    assert model.representation().numpy() == pytest.approx(expected)


@pytest.mark.parametrize("baseline", [None, "eos", "zero"])
def test_baselines(baseline, llama_pipe, tiny_llama, byte_tokenizer):
    text, concept = TEXTS[0], int(strongest(llama_pipe, TEXTS[0])[0])
    found = input_concept_attribution(
        llama_pipe, [text], concept, attribution_method="saliency", baseline=baseline
    )
    assert found.baseline == ("zero" if baseline == "zero" else "<|endoftext|>")
    ids = [byte_tokenizer.eos_token_id] * len(found[0])
    sae, kept = llama_pipe[-1], slice(None)
    if baseline != "zero":
        value = summed_activation(tiny_llama, "model.layers.1", sae, ids, concept, kept)
        assert found.baseline_values[0] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_kernel_weights():
    weights = [
        shapley_kernel(None, None, torch.tensor([z]), num_interp_features=4)
        for z in ([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])
    ]
    assert weights == pytest.approx([3 / 12, 3 / 24, 3 / 12])
