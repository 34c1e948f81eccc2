"""A small SAE on a layer of the tiny Llama."""

import pytest
import torch
from sklearn.pipeline import make_pipeline

from sksae import Extractor, TopKSAE

TRAINING = [
    "the sea is blue and the sky above it is blue too",
    "a hidden state is a vector, and the vector has many features",
    "models read tokens; they do not read texts",
    "no feature is a token, and no token is a feature",
]


@pytest.fixture(scope="session")
def pipe(tiny_llama, byte_tokenizer):
    """An extractor on block 1 and an SAE of 48 concepts, 6 active."""
    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
    sae = TopKSAE(48, top_k=6, nb_epochs=20, batch_size=32, device="cpu", random_state=0)
    return make_pipeline(acts, sae).fit(TRAINING)


@pytest.fixture(scope="session")
def sae(pipe):
    return pipe[1]


@pytest.fixture(scope="session")
def ids():
    """Two texts of 7 tokens for the tiny Llama."""
    return torch.tensor([[5, 80, 60, 200, 7, 9, 290], [11, 12, 250, 40, 77, 81, 3]])


@pytest.fixture
def state_at():
    """Give the output of a layer in a forward pass."""

    def call(model, module, **inputs):
        seen = []
        handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out))
        try:
            with torch.no_grad():
                model(**inputs)
        finally:
            handle.remove()
        out = seen[0]
        return out if isinstance(out, torch.Tensor) else out[0]

    return call
