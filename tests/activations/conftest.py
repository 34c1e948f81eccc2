"""Extractors on the tiny models."""

import pytest

from sksae.activations import Extractor


@pytest.fixture(params=["bert", "gpt2", "llama"])
def pair(request):
    """A model and its tokenizer."""
    name = "bert_tokenizer" if request.param == "bert" else "byte_tokenizer"
    return request.getfixturevalue(f"tiny_{request.param}"), request.getfixturevalue(name)


@pytest.fixture
def bert(tiny_bert, bert_tokenizer):
    """Make an extractor on the tiny BERT."""

    def make(layer="layer.1", **params):
        return Extractor(tiny_bert, layer, **{"tokenizer": bert_tokenizer, **params})

    return make
