"""Edited concepts in trained models."""

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline

from sksae import Extractor, TopKSAE
from sksae.interpretation import LogitLens
from sksae.intervention import Add, effects, intervene

pytestmark = pytest.mark.real

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


@pytest.fixture(scope="module")
def smollm(full_smollm_path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(full_smollm_path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def late(smollm, full_smollm_path):
    """A pipeline on the last block but two."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(full_smollm_path)
    acts = Extractor(smollm, 27, tokenizer=tokenizer, skip_first=1)
    sae = TopKSAE(64, top_k=8, nb_epochs=40, batch_size=32, device="cpu", random_state=0)
    return make_pipeline(acts, sae).fit(NEWS)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_an_empty_block_is_exact_in_a_causal_model(smollm, late):
    inputs = late[0].tokenizer(NEWS[0], return_tensors="pt")
    plain = logits(smollm, inputs)
    with intervene(smollm, None, late, {}):
        assert torch.equal(logits(smollm, inputs), plain)
    silent = int(np.flatnonzero(late.transform(NEWS[:1]).getnnz(axis=0) == 0)[0])
    with intervene(smollm, None, late, {silent: "ablate"}):
        assert torch.equal(logits(smollm, inputs), plain)


def test_a_concept_turned_up_raises_the_logits_that_its_row_promotes(smollm, late):
    codes = late.transform(NEWS)
    live = np.argsort(-codes.getnnz(axis=0), kind="stable")[:6].tolist()
    lens = LogitLens(smollm, late[1], tokenizer=late[0].tokenizer, k=5, concepts_indices=live)
    found = lens.fit(codes).interpretations_
    inputs = late[0].tokenizer(NEWS[2], return_tensors="pt")
    plain = logits(smollm, inputs)[0, 1:]
    plain = plain - plain.mean(dim=1, keepdim=True)
    rises = []
    for concept in live:
        amount = float(codes[:, [concept]].max())
        with intervene(smollm, None, late, {concept: Add(amount)}):
            changed = logits(smollm, inputs)[0, 1:]
        rise = (changed - changed.mean(dim=1, keepdim=True) - plain).mean(dim=0)
        promoted = [token.id for token in found[concept].promoted]
        rises.append(float(rise[promoted].mean() / rise.std()))
    # In standard deviations over the vocabulary; what two more blocks do to it is not in the lens.
    assert min(rises) > 0.3 and np.mean(rises) > 1.5, rises


def test_generation_is_steered_with_and_without_a_cache(smollm, late):
    tokenizer = late[0].tokenizer
    concept = int(np.argmax(late.transform(NEWS).getnnz(axis=0)))
    largest = float(late.transform(NEWS)[:, [concept]].max())
    inputs = tokenizer("The weather in", return_tensors="pt")

    def write(**settings):
        return smollm.generate(
            **inputs, do_sample=False, max_new_tokens=6, pad_token_id=0, **settings
        )

    plain = write()
    for positions in (None, "last"):
        with intervene(smollm, None, late, {concept: Add(4 * largest)}, positions):
            steered = write()
            assert torch.equal(write(use_cache=False), steered)
        assert not torch.equal(steered, plain)
    assert torch.equal(write(), plain)


def test_an_encoder_padded_in_a_batch(minilm_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    acts = Extractor(model, "encoder.layer.4", tokenizer=tokenizer)
    sae = TopKSAE(64, top_k=8, nb_epochs=20, batch_size=32, device="cpu", random_state=0)
    pipe = make_pipeline(acts, sae).fit(NEWS)
    concept = int(np.argmax(pipe.transform(NEWS).getnnz(axis=0)))
    batch = tokenizer(NEWS, return_tensors="pt", padding=True)
    with torch.no_grad():
        plain = model(**batch).last_hidden_state
        with intervene(model, None, pipe, {}):
            assert torch.equal(model(**batch).last_hidden_state, plain)
        with intervene(model, None, pipe, {concept: "ablate"}):
            together = model(**batch).last_hidden_state
            for i, text in enumerate(NEWS):
                alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
                torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(together, plain, atol=1e-2)


def test_what_the_strongest_concepts_do_is_more_than_what_weak_ones_do(late):
    codes = late.transform(NEWS[:4])
    order = np.argsort(codes.toarray().sum(axis=0), kind="stable")
    order = order[codes.getnnz(axis=0)[order] > 0]
    found = effects(late, NEWS[:4], [*order[-3:].tolist(), *order[:3].tolist()])
    assert 3 < found.loss < 5
    assert found.kl[:3].mean() > 2 * found.kl[3:].mean()
    assert found.loss_change[:3].mean() > 0
