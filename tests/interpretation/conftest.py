import pytest
from sklearn.pipeline import Pipeline

from sksae import TopKSAE, TransformerActivationExtractor

TEXTS = [
    "The sea is blue. The seas sing!",
    "A blue sea, and the sky; blueing.",
    "",
    "The rocks sing the blues.",
]


@pytest.fixture(scope="session")
def texts():
    """Four short texts, one of them empty."""
    return TEXTS


@pytest.fixture(scope="session")
def bert_pipe(tiny_bert, bert_tokenizer):
    """Give fitted pipelines of extractor and SAE on the tiny BERT, by parameters."""
    fitted = {}

    def build(sae=None, **params):
        key = repr(sorted(params.items())) if sae is None else None
        if key not in fitted:
            acts = TransformerActivationExtractor(
                tiny_bert, "layer.0", tokenizer=bert_tokenizer, **params
            )
            sae = sae or TopKSAE(24, top_k=4, nb_epochs=1, device="cpu", random_state=0)
            pipe = Pipeline([("acts", acts), ("sae", sae)]).fit(TEXTS * 3)
            if key is None:
                return pipe
            fitted[key] = pipe
        return fitted[key]

    return build
