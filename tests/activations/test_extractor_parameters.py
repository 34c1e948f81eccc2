"""What the extractor refuses, and that it leaves the model as it was."""

import copy
import re

import numpy as np
import pytest
import torch

from sksae.activations import Extractor

TEXTS = [
    "The sea is blue.",
    "",
    "Don't read 😀 texts; read tokens! Café? 漢字",
    "sea",
    "The sea is blue.",
    "a b c d e f g h i j k l m n o p q r",
    "Two sentences. Or three?\nYes.",
]


def other_padding(tokenizer, **changes):
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


# Parameters


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"granularity": "tokens"}, "The 'granularity' parameter of Trans"),
        ({"aggregation": "median"}, "The 'aggregation' parameter of Trans"),
        ({"long_text": "split"}, "The 'long_text' parameter of Trans"),
        (
            {"batch_size": 0},
            "The 'batch_size' parameter of TransformerActivationExtractor must be a str among "
            "{'auto'} or an int in the range [1, inf). Got 0 instead.",
        ),
        ({"skip_first": -1}, "must be an int in the range [0, inf). Got -1 instead."),
        ({"max_length": 0}, "must be None or an int in the range [1, inf). Got 0 instead."),
        ({"model": 3}, "The 'model' parameter of TransformerActivationExtractor must be"),
        ({"tokenizer": 3}, "The 'tokenizer' parameter of TransformerActivationExtractor must be"),
        ({"layer": 1.5}, "The 'layer' parameter of TransformerActivationExtractor must be"),
        ({"cache": True}, "The 'cache' parameter of TransformerActivationExtractor must be"),
        (
            {"cache": "None"},
            "The 'cache' parameter of TransformerActivationExtractor must be 'memory', None or a "
            "folder. Got 'None' instead. For a folder of that name, write './None'.",
        ),
        (
            {"cache": __file__},
            "The 'cache' parameter of TransformerActivationExtractor must be 'memory', None or a "
            f"folder. Got the file '{__file__}' instead.",
        ),
        ({"cache_size": -1}, "must be an int in the range [0, inf). Got -1 instead."),
        ({"progress": "yes"}, "The 'progress' parameter of TransformerActivationExtractor must"),
        ({"layer": "layer.9"}, "No module named 'layer.9' in BertModel"),
        (
            {"layer": "pooler"},
            "Module 'pooler' of BertModel gives no tensor of shape (texts, tokens, features). Got "
            "a tensor of shape (1, 32) instead.",
        ),
        ({"revision": "main"}, "revision is for a model given by name, and this BertModel is an"),
        ({"model_params": {}}, "model_params is for a model given by name, and this BertModel"),
        (
            {"dtype": "float16"},
            "dtype='float16' is for a model given by name, and this BertModel is an object of "
            "torch.float32, which is never cast.",
        ),
        ({"dtype": "float"}, ""),
        ({"dtype": "int8"}, "dtype='int8' is no floating dtype of torch. Use 'float32'"),
        ({"dtype": "nn"}, "dtype='nn' is no floating dtype of torch."),
        ({"device": "gpu"}, "The 'device' parameter of TransformerActivationExtractor must be"),
        ({"device": "meta"}, "device='meta' is for a model given by name, and this BertModel is"),
        (
            {"device": "cuda:99"},
            "device='cuda:99' was asked of TransformerActivationExtractor, but this machine has",
        ),
        (
            {"granularity": "cls", "skip_first": 1},
            "granularity='cls' reads position 0, which skip_first=1 leaves out. Use skip_first=0.",
        ),
        (
            {"granularity": "cls", "long_text": "windows"},
            "granularity='cls' reads one position of a text, long_text='windows' gives several. "
            "Use long_text='truncate' or granularity='sample'.",
        ),
    ],
)
def test_wrong_parameters(bert, params, message):
    if not message:
        bert(**params).fit(["a"])  # torch.float is float32
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        bert().set_params(**params).fit(["a"])


def test_cls_needs_a_cls_token(tiny_gpt2, byte_tokenizer, tiny_bert, bert_tokenizer):
    message = (
        "granularity='cls' needs a tokenizer with a cls token at position 0; {} has none. Use "
        "granularity='sample'."
    )
    with pytest.raises(ValueError, match=re.escape(message.format(type(byte_tokenizer).__name__))):
        Extractor(tiny_gpt2, 0, tokenizer=byte_tokenizer, granularity="cls").fit(["a"])
    moved = other_padding(bert_tokenizer, cls_token="[SEP]")
    with pytest.raises(ValueError, match="does not put it first. Use granularity='sample'."):
        Extractor(tiny_bert, 0, tokenizer=moved, granularity="cls").fit(["a"])


def test_slow_tokenizers_are_refused(tiny_bert):
    class SlowTokenizer:
        is_fast = False

        def convert_ids_to_tokens(self, ids):
            return ids

    message = (
        "SlowTokenizer is a slow tokenizer, without the character spans of its tokens. Pass a fast "
        "one: AutoTokenizer.from_pretrained(name, use_fast=True)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(tiny_bert, 0, tokenizer=SlowTokenizer()).fit(["a"])


def test_a_tokenizer_of_another_model_is_refused(bert, byte_tokenizer):
    message = "they do not belong together. Pass the tokenizer of this model."
    with pytest.raises(ValueError, match=re.escape(message)):
        bert(tokenizer=byte_tokenizer).fit_transform(["😀 漢字"])


def test_an_object_without_a_tokenizer(tiny_bert):
    message = (
        "tokenizer=None takes the tokenizer of the model's folder, and this BertModel names none. "
        "Pass tokenizer=."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(tiny_bert, 0).fit(["a"])


def test_wrappers_are_refused(bert_tokenizer):
    class Wrapper(torch.nn.Module):
        def forward(self, features):
            return features

    message = "Sequential takes no input_ids. Pass the transformers model itself"
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(torch.nn.Sequential(Wrapper()), "0", tokenizer=bert_tokenizer).fit(["a"])


def test_plain_torch_models(bert_tokenizer):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(200, 5)
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(5, 3)])

        def forward(self, input_ids):
            return self.blocks[0](self.table(input_ids)).sum()

    X = Extractor(Plain(), 0, tokenizer=bert_tokenizer).fit_transform(TEXTS)
    assert X.shape[1] == 3


def test_layers_without_one_row_per_token_are_refused(bert_tokenizer):
    class Pooling(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=1, keepdim=True)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(200, 5)
            self.pool = Pooling()

        def forward(self, input_ids):
            return self.pool(self.table(input_ids))

    message = (
        "Module 'pool' gave hidden states of shape (1, 1, 5) for 1 texts of 8 tokens. Choose a "
        "module that gives one row per token."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(Plain(), "pool", tokenizer=bert_tokenizer).fit(["a"])


# The model object stays as it is


def state_of(model):
    return {
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grad": [p.requires_grad for p in model.parameters()],
        "dtype": [(p.dtype, p.device, p.data_ptr()) for p in model.parameters()],
    }


def test_the_model_is_left_as_it_was(tiny_bert, bert_tokenizer):
    model = copy.deepcopy(tiny_bert).train()
    model.encoder.layer[0].eval()
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    extractor = Extractor(model, 1, tokenizer=bert_tokenizer)
    X = extractor.fit_transform(TEXTS)
    assert state_of(model) == before
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    # No dropout although the model is in training mode.
    np.testing.assert_array_equal(X, extractor.transform(TEXTS))

    def fail(*args):
        raise RuntimeError("inside")

    handle = model.encoder.layer[1].intermediate.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        extractor.transform(TEXTS)
    handle.remove()
    assert state_of(model) == before
    np.testing.assert_array_equal(X, extractor.transform(TEXTS))


def test_random_state_is_untouched(bert):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.get_rng_state(), np.random.get_state()[1].tolist()
    bert().fit_transform(TEXTS)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert np.random.get_state()[1].tolist() == expected[1]


def test_half_precision_objects_give_float32(tiny_bert, bert_tokenizer):
    model = copy.deepcopy(tiny_bert).bfloat16()
    X = Extractor(model, 1, tokenizer=bert_tokenizer, dtype="bfloat16").fit_transform(TEXTS)
    assert X.dtype == np.float32
    full = Extractor(tiny_bert, 1, tokenizer=bert_tokenizer).fit_transform(TEXTS)
    assert np.corrcoef(X.ravel(), full.ravel())[0, 1] > 0.99
