"""Concept to output on trained weights and real texts."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sksae import Extractor, TopKSAE
from sksae.attribution import concept_output_attribution, insertion_deletion

pytest.importorskip("captum")
pytestmark = pytest.mark.real

NEWS = {
    "business": [
        "The central bank raised interest rates again, and shares in London fell sharply.",
        "Shares of the oil company rose after it reported record profits for the quarter.",
        "The retailer cut its sales forecast as consumers spent less than last year.",
        "Investors sold the dollar after weak figures for jobs and trade.",
    ],
    "sports": [
        "The striker scored twice as England beat Wales in the rugby and football cups.",
        "She won the final in straight sets and will play in the Wimbledon semi-final.",
        "The coach praised his goalkeeper after the club won its third match in a row.",
        "The sprinter broke the indoor record and hopes to run at the Olympics.",
    ],
    "tech": [
        "The phone maker showed a new mobile with a faster chip and a better camera.",
        "Hackers used a virus to steal passwords from users of the web browser.",
        "The search engine lets users find files and e-mails on their computers.",
        "Broadband lines let people download music and video games at home.",
    ],
}
TEXTS = [text for texts in NEWS.values() for text in texts]
TOPICS = np.repeat(list(NEWS), 4)


@pytest.fixture(scope="module")
def classifier(minilm_path):
    """MiniLM with a logistic regression on its last [CLS] state as the head."""
    from transformers import AutoModel, BertForSequenceClassification

    base = AutoModel.from_pretrained(minilm_path)
    base.config.id2label = dict(enumerate(NEWS))
    base.config.label2id = {name: i for i, name in enumerate(NEWS)}
    model = BertForSequenceClassification(base.config).eval()
    model.bert = base.eval()
    states = Extractor(base, "pooler", tokenizer=minilm_path)
    with torch.no_grad():
        inputs = states._load_tokenizer()(TEXTS, return_tensors="pt", padding=True)
        pooled = base(**inputs).pooler_output.numpy()
    fitted = LogisticRegression(C=100).fit(pooled, TOPICS)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        model.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


@pytest.fixture(scope="module")
def encoder(classifier, minilm_path):
    acts = Extractor(classifier, "encoder.layer.3", tokenizer=minilm_path)
    sae = TopKSAE(256, top_k=8, nb_epochs=40, batch_size=32, random_state=0)
    return make_pipeline(acts, sae).fit(TEXTS)


@pytest.fixture(scope="module")
def causal(full_smollm_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(full_smollm_path, dtype=torch.float32)
    acts = Extractor(model, 20, tokenizer=full_smollm_path, skip_first=1)
    sae = TopKSAE(256, top_k=8, nb_epochs=40, batch_size=32, random_state=0)
    return make_pipeline(acts, sae).fit(TEXTS)


def strongest_against_random(pipe, texts, found):
    """Compare what ablating the top tenth of the concepts does with a random tenth."""
    curves = insertion_deletion(pipe, texts, found, n_random=3, random_state=0)
    areas = curves.to_dict()
    assert areas["deletion"] < areas["deletion_random"]
    assert areas["insertion"] > areas["insertion_random"]
    dropped, at_random = (
        (found.logits_replaced - curve[:, 1]).mean()
        for curve in (curves.deletion, curves.deletion_random)
    )
    assert dropped > 3 * abs(at_random)
    first, random = (curve[:, 1] for curve in (curves.deletion, curves.deletion_random))
    assert (first < random).all()


@pytest.mark.parametrize("method", ["gradient_x_activation", "integrated_gradients", "ablation"])
def test_the_concepts_of_a_classifier(encoder, method):
    texts = TEXTS[::3]
    found = concept_output_attribution(
        encoder, texts, target=list(TOPICS[::3]), attribution_method=method
    )
    np.testing.assert_allclose(found.logits, found.logits_replaced, atol=1e-3)
    if method == "integrated_gradients":
        change = found.logits_replaced - found.logits_baseline
        np.testing.assert_allclose(found.delta, 0, atol=0.01 * np.abs(change).max())
    strongest_against_random(encoder, texts, found)


def test_the_concepts_of_a_language_model(causal):
    texts = TEXTS[1::6]
    found = concept_output_attribution(causal, texts)
    np.testing.assert_allclose(found.logits, found.logits_replaced, rtol=1e-4, atol=1e-3)
    strongest_against_random(causal, texts, found)


def test_one_row_of_a_text_decides_more_than_the_rest(causal):
    text = ["Monday, Tuesday, Wednesday, Thursday,"]
    found = concept_output_attribution(
        causal, text, attribution_method="integrated_gradients", per_position=True, n_steps=32
    )
    assert found.target_names == [" Friday"]
    change = found.logits_replaced - found.logits_baseline
    np.testing.assert_allclose(found.delta, 0, atol=0.02 * np.abs(change).max())
    by_row = np.abs(found.scores.toarray()).sum(axis=1)
    assert by_row.argmax() == len(by_row) - 1  # the one that the logits are read from
