"""Attribution of concepts to their input on trained weights and real sentences."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from sksae import BatchTopKSAE, Extractor, TopKSAE, VanillaSAE
from sksae.attribution import input_concept_attribution

from .conftest import summed_activation

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
    "The film took the award for best actress, and its director thanked the crew.",
    "The band will release its new album in June and tour the country in autumn.",
]


@pytest.fixture(scope="module")
def acts(minilm_path):
    return Extractor(minilm_path, "encoder.layer.2")


@pytest.fixture(scope="module")
def pipe(acts):
    sae = TopKSAE(128, top_k=16, nb_epochs=40, batch_size=64, random_state=0)
    return make_pipeline(acts, sae).fit(NEWS)


def drops(pipe, text, concept, scores, rng, n_deleted=3):
    """Give the shares of an activation that masking the top tokens and random ones takes."""
    model, tokenizer = pipe[0]._loaded()
    ids = tokenizer(text)["input_ids"]

    def left(deleted):
        changed = [tokenizer.mask_token_id if i - 1 in deleted else x for i, x in enumerate(ids)]
        return summed_activation(
            model, "encoder.layer.2", pipe[-1], changed, concept, slice(1, len(ids) - 1)
        )

    full, n = left(()), len(ids) - 2
    random = [left(rng.choice(n, n_deleted, replace=False)) for _ in range(4)]
    return 1 - left(np.argsort(-scores)[:n_deleted]) / full, 1 - np.mean(random) / full


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("integrated_gradients", 1.5),
        ("occlusion", 1.5),
        ("kernel_shap", 1.5),
    ],
)
def test_deleting_the_top_tokens_takes_more_than_deleting_random_ones(method, factor, pipe):
    rng = np.random.default_rng(0)
    codes = pipe.transform(NEWS)
    taken = []
    for i in range(0, len(NEWS), 2):
        concept = int(np.asarray(codes[codes.rows.text == i].sum(axis=0)).argmax())
        found = input_concept_attribution(
            pipe,
            NEWS[i : i + 1],
            concept,
            attribution_method=method,
            n_steps=16,
            n_samples=128,
            random_state=0,
        )
        taken.append(drops(pipe, NEWS[i], concept, found.scores, rng))
    top, random = np.mean(taken, axis=0)
    assert top > factor * random, (top, random)
    assert top > 0.2


def test_integrated_gradients_are_complete(acts):
    sae = VanillaSAE(128, nb_epochs=20, batch_size=64, random_state=0)
    pipe = make_pipeline(acts, sae).fit(NEWS)
    concepts = np.argsort(-np.asarray(pipe.transform(NEWS[:2]).sum(axis=0)).ravel())[:2]
    found = input_concept_attribution(pipe, NEWS[:2], concepts, n_steps=50)
    assert np.abs(found.delta).max() < 0.02 * np.abs(found.values).max()


def test_a_real_causal_model(smollm_path):
    acts = Extractor(smollm_path, 3, skip_first=1)
    sae = BatchTopKSAE(128, top_k=16, nb_epochs=20, batch_size=64, random_state=0)
    pipe = make_pipeline(acts, sae).fit(NEWS)
    codes = pipe.transform(NEWS[:1])
    row = 5
    concept = int(np.asarray(codes[row].todense()).argmax())
    found = input_concept_attribution(pipe, NEWS[:1], concept, reduction=row, n_steps=16)
    assert found.values[0] == pytest.approx(codes[row, concept], rel=1e-4)
    assert not found.scores[row + 2 :].any()  # one token is left out before the rows
    assert found.scores[: row + 2].any()
    words = input_concept_attribution(
        pipe, NEWS[:1], concept, granularity="word", attribution_method="occlusion"
    )
    assert list(words.rows.units)[:3] == ["The", "central", "bank"]
