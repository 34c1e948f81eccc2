"""Plain references for attributions: a linear model, and forward passes on changed tokens."""

import numpy as np
import pytest
import torch
from torch import nn

from sksae import Extractor, VanillaSAE

WORDS = ["red", "green", "blue", "sea", "sky", "is", "big", "."]


class LinearModel(nn.Module):
    """A text model that is linear in its embeddings: each token reaches itself and the next."""

    carried = 0.5

    def __init__(self, n_tokens, n_features):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, n_features)
        self.mix = nn.Linear(n_features, n_features)
        self.out = nn.Identity()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        h = self.mix(self.embedding(input_ids))
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        return self.out(h + self.carried * before)


@pytest.fixture(scope="session")
def plain_words():
    """A tokenizer of whole words with a mask token and no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[MASK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", pad_token=None
    )


@pytest.fixture(scope="session")
def linear_model(plain_words):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LinearModel(len(plain_words), 6).eval()


@pytest.fixture(scope="session")
def linear_parts(linear_model, plain_words):
    """The arguments of a linear model and an SAE whose concepts are active everywhere."""
    acts = Extractor(linear_model, "out", tokenizer=plain_words)
    X = acts.fit_transform([" ".join(WORDS)] * 4)
    sae = VanillaSAE(8, nb_epochs=1, random_state=0).fit(X)
    with torch.no_grad():
        sae.module_.linear_encoder.bias.fill_(100.0)
    return {"pipe_or_sae": sae, "model": linear_model, "layer": "out", "tokenizer": plain_words}


def hidden(model, path, **inputs):
    """Run a model as it is; give the output of one module, for one text."""
    found = []
    module = dict(model.named_modules())[path]
    handle = module.register_forward_hook(lambda _m, _a, out: found.append(out))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    state = found[0] if isinstance(found[0], torch.Tensor) else found[0][0]
    return state[0].float().numpy()


def summed_activation(model, path, sae, ids, concept, kept):
    """Give a concept's summed activation over the kept positions of token ids."""
    rows = hidden(model, path, input_ids=torch.tensor([ids]))[kept]
    return float(np.asarray(sae.transform(rows)[:, [concept]].sum()))
