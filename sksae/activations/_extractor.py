"""The transformer that turns texts into the hidden states of a language model."""

from __future__ import annotations

import os
import warnings
from numbers import Integral

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .._device import resolve_device
from .._sklearn import HasMethods, Interval, StrOptions, fit_context, output_container
from . import _loading as loading
from ._cache import NoGroup, text_keys
from ._cache_choice import check_cache, open_group
from ._forward import Forward, device_of, position_limit
from ._layers import find_layers
from ._rows import Rows, labelled_texts, rows_frame, with_rows
from ._run import Run, Setup, n_run, run_plan
from ._sharing import SharesModel
from ._texts import Texts, Tokens, check_texts, tokenize
from ._units import (
    AGGREGATIONS,
    GRANULARITIES,
    POOLED,
    Plan,
    Pool,
    cut,
    make_plan,
    special_strings,
    strings_of,
)

# Of a tokenizer and a model that name no limit.
_DEFAULT_LENGTH = 512


class TransformerActivationExtractor(TransformerMixin, SharesModel):
    """Hidden states of a transformer, one row per token, word, sentence or text.

    The texts run through the model in batches of like length, no further than the layers
    asked for. The result is a matrix that knows which text, and which characters of it, each
    row comes from: ``X.rows``. Padding changes no row. Nothing is learnt: ``fit`` checks the
    parameters and runs a few tokens to find the number of features.

    Parameters
    ----------
    model : str, path or torch.nn.Module
        Name or folder that ``transformers.AutoModel`` loads, or a model object. An object is
        used where and as it is: it is not moved or cast, it runs in evaluation mode, and
        it is given back in the mode it came in. Clones share it.
    layer : str, int or list of these
        A module path such as ``"encoder.layer.4"``, an end of one that fits a single module
        (``"layer.4"``), or the number of a block, negative from the end. With a list, one
        forward pass gives all layers, side by side.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the tokenizer that goes with the model's name or folder. It must be a fast
        one, because others do not tell which characters a token stands for.
    granularity : {"token", "all_tokens", "word", "sentence", "sample", "cls"}, \
            default="token"
        What a row stands for.

        - "token": every token but special ones. A special token that is spelt out in the text,
          such as "[SEP]", counts as special too; the unknown token, which stands for
          characters of the text, does not.
        - "all_tokens": special tokens too; never padding.
        - "word": the words of the tokenizer (punctuation may be words), or those given.
        - "sentence": split by rule at stops before white space and at line breaks.
        - "sample": all tokens of a text but special ones.
        - "cls": the special token that the tokenizer puts first.

        Words and sentences of white space alone have no row, nor have texts without tokens.
    aggregation : {"mean", "max", "min", "sum", "signed_max", "first", "last"}, \
            default="mean"
        How the tokens of a word, sentence or sample are made one row, feature by feature.
        "signed_max" takes the value farthest from zero.
    batch_size : int or "auto", default="auto"
        Texts run at once. "auto" takes as many of like length as come to 1,024 tokens for each
        thread of torch on the CPU (16,384 at most), to 32,768 on another device, padding
        included, and at least one.
    max_length : int, default=None
        Most tokens run at once, special ones included. None takes the smaller of what the
        tokenizer and the model's positions allow, or 512 where neither says.
    long_text : {"truncate", "windows"}, default="truncate"
        A text of more than ``max_length`` tokens is truncated, with one warning, or run in
        windows that overlap by half. Each token then has one row, from the window in whose
        middle it is nearest; character spans are those of the whole text. "cls" needs
        "truncate".
    skip_first : int, default=0
        Leading tokens of each text that are left out, special tokens counted, padding not.
        Causal models use the first position as an attention sink of very large norm.
    device : str or torch.device, default="auto"
        For a model given by name. "auto" is CUDA where there is one, else the CPU.
    dtype : str or torch.dtype, default="float32"
        For a model given by name, the type it computes in. The result is float32 always.
        On some CPUs "bfloat16" is slower than float32.
    revision : str, default=None
        For a model given by name, the version to load.
    model_params : dict, default=None
        For a model given by name, further arguments of ``AutoModel.from_pretrained``.
    tokenizer_params : dict, default=None
        Arguments of ``AutoTokenizer.from_pretrained``, where the tokenizer is loaded.
    cache : "memory", str, path or None, default="memory"
        Where rows are kept, so that no text runs through the same model twice. "memory" is
        shared by all extractors of this process and is free again when the last of them is
        gone. A folder is shared by processes, and stays; it needs the extra ``sksae[cache]``.
        None keeps nothing.
    cache_size : int, default=2_000_000_000
        Most bytes kept in memory, in each process. Those unused for longest make room. A
        folder has no limit.
    progress : bool, default=False
        Show a bar that counts tokens.

    Attributes
    ----------
    layer_names_ : list of str
        Full module path of each layer.
    layer_sizes_ : list of int
        Number of features of each layer.
    n_features_out_ : int
        Number of columns, the sum of ``layer_sizes_``.
    max_length_ : int
        Most tokens run at once.

    See Also
    --------
    ConceptPooler : Makes one row per text again.
    KeepRows : Lets ``X.rows`` pass a scikit-learn step.

    Notes
    -----
    Pickling keeps a model object with its weights, a model given by name as the name. Clones
    hold what they loaded together, so that a search loads a model once in each process.

    The cache goes by content: a text is found in whatever list, order or number it comes
    again, in ``fit_transform``, ``transform`` and scoring alike, under the hash of the model's
    weights, settings and code, of the tokenizer, and of all parameters that rows follow from.
    Models, layers and settings never share rows, and a model object that was trained or
    changed since is another model. Rows from the cache are bit for bit those of the run that
    put them there. Another batch would have rounded them differently, in float32 by about
    1e-6 of their size. Within one call equal texts run once. Weights changed through
    ``tensor.data`` or NumPy are noticed, but in models over 1 GB only where the change
    reaches one of 64 sampled blocks of the tensor. A model with forward hooks of others, or
    with weights that are not in memory, is run without the cache. Pickles never carry it.

    ``padding_side`` of the tokenizer is followed where the model takes positions; rows are
    the same on either side.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sea": 2}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> model = BertModel(BertConfig(vocab_size=3, hidden_size=8, num_attention_heads=2))
    >>> extractor = TransformerActivationExtractor(model, "layer.0", tokenizer=tokenizer)
    >>> X = extractor.fit_transform(["blue sea", "sea"])
    >>> X.shape, list(X.rows.units), X.rows.text.tolist()
    ((3, 8), ['blue', 'sea', 'sea'], [0, 0, 1])
    >>> extractor.get_feature_names_out()[-1]
    'encoder.layer.0_7'
    """

    _parameter_constraints: dict = {
        "model": [str, os.PathLike, torch.nn.Module],
        "layer": [str, Integral, list, tuple],
        "tokenizer": [None, str, os.PathLike, HasMethods(["convert_ids_to_tokens"])],
        "granularity": [StrOptions(set(GRANULARITIES))],
        "aggregation": [StrOptions(set(AGGREGATIONS))],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_length": [None, Interval(Integral, 1, None, closed="left")],
        "long_text": [StrOptions({"truncate", "windows"})],
        "skip_first": [Interval(Integral, 0, None, closed="left")],
        "device": [str, torch.device],
        "dtype": [str, torch.dtype],
        "revision": [None, str],
        "model_params": [None, dict],
        "tokenizer_params": [None, dict],
        "cache": [None, str, os.PathLike],
        "cache_size": [Interval(Integral, 0, None, closed="left")],
        "progress": ["boolean"],
    }

    def __init__(
        self,
        model,
        layer,
        *,
        tokenizer=None,
        granularity="token",
        aggregation="mean",
        batch_size="auto",
        max_length=None,
        long_text="truncate",
        skip_first=0,
        device="auto",
        dtype="float32",
        revision=None,
        model_params=None,
        tokenizer_params=None,
        cache="memory",
        cache_size=2_000_000_000,
        progress=False,
    ):
        self.model = model
        self.layer = layer
        self.tokenizer = tokenizer
        self.granularity = granularity
        self.aggregation = aggregation
        self.batch_size = batch_size
        self.max_length = max_length
        self.long_text = long_text
        self.skip_first = skip_first
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.model_params = model_params
        self.tokenizer_params = tokenizer_params
        self.cache = cache
        self.cache_size = cache_size
        self.progress = progress

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters, load what is given by name, find the number of features.

        Parameters
        ----------
        X : sequence of str, or of lists of str
            Texts, or texts split into words. They are checked but not run.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : TransformerActivationExtractor
            The fitted extractor.
        """
        check_texts(X, type(self).__name__)
        self._check_combinations()
        check_cache(self.cache, type(self).__name__)
        model, tokenizer = self._load()
        layers = find_layers(model, self.layer)
        self.max_length_ = self._resolve_max_length(model, tokenizer)
        ids = self._probe_ids(tokenizer)
        _check_vocabulary(ids, model, tokenizer)
        sizes = Forward(model, layers, tokenizer).probe(ids)
        self.layer_names_ = list(sizes)
        self.layer_sizes_ = list(sizes.values())
        self.n_features_out_ = sum(self.layer_sizes_)
        self._held = (model, tokenizer)
        return self

    def transform(self, X):
        """Give the hidden states of texts.

        Parameters
        ----------
        X : sequence of str, or of lists of str
            Texts: a list, array, Series or column of a Hugging Face dataset. Lists of words
            are joined by spaces, and are the units of "word".

        Returns
        -------
        X_out : ndarray of float32, shape (n_rows, n_features_out)
            One row per unit, in the order of the texts. ``X_out.rows`` tells the text and
            characters of each. Under ``set_output(transform="pandas")`` a frame with the
            index (text, start, end).
        """
        check_is_fitted(self)
        texts = check_texts(X, type(self).__name__)
        model, tokenizer = self._loaded()
        group = self._cache_group(model, tokenizer)
        keys = range(len(texts.texts)) if isinstance(group, NoGroup) else text_keys(texts)
        with self._bar() as bar:
            result = Run(self._setup(), texts, keys, group, bar).result()
        self._warn_if_truncated(result.n_tokens)
        start, end, special = result.spans.T
        text = np.repeat(np.arange(len(texts.texts)), result.n_rows)
        known = labelled_texts(texts.texts, X)
        rows = Rows(text, start, end, known, strings_of(special, tokenizer))
        if output_container(self) == "pandas":
            return rows_frame(result.values, rows)
        return with_rows(result.values, rows)

    def get_feature_names_out(self, input_features=None):
        """Name the columns ``"{layer}_{i}"``, by the full path of their layer.

        Parameters
        ----------
        input_features : object, default=None
            Ignored.

        Returns
        -------
        names : ndarray of str objects, shape (n_features_out,)
            For example "encoder.layer.4_0".
        """
        check_is_fitted(self)
        named = zip(self.layer_names_, self.layer_sizes_, strict=True)
        return np.array([f"{name}_{i}" for name, size in named for i in range(size)], dtype=object)

    def _check_combinations(self):
        if self.granularity == "cls":
            if self.skip_first:
                raise ValueError(
                    f"granularity='cls' reads position 0, which skip_first={self.skip_first} "
                    "leaves out. Use skip_first=0."
                )
            if self.long_text == "windows":
                raise ValueError(
                    "granularity='cls' reads one position of a text, long_text='windows' gives "
                    "several. Use long_text='truncate' or granularity='sample'."
                )
        if loading.is_name(self.model):
            return
        for name in ("revision", "model_params"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for a model given by name, and this {type(self.model).__name__} "
                    f"is an object. Use {name}=None."
                )
        self._check_object_stays()

    def _check_object_stays(self):
        kind, there = type(self.model).__name__, device_of(self.model)
        wanted = (
            there if self.device == "auto" else resolve_device(self.device, type(self).__name__)
        )
        if wanted.type != there.type or wanted.index not in (None, there.index):
            raise ValueError(
                f"device='{self.device}' is for a model given by name, and this {kind} is an "
                f"object on {there}, which is never moved. Move it yourself, or use 'auto'."
            )
        first = next(self.model.parameters(), None)
        dtype = loading.resolve_dtype(self.dtype)
        if dtype != torch.float32 and first is not None and first.dtype != dtype:
            raise ValueError(
                f"dtype={self.dtype!r} is for a model given by name, and this {kind} is an object "
                f"of {first.dtype}, which is never cast. Cast it yourself, or leave the default."
            )

    def _load(self):
        model, tokenizer = self._load_model(), self._load_tokenizer()
        self._family()["loaded"] = (model, tokenizer)
        return model, loading.check_tokenizer(tokenizer)

    def _loaded(self):
        """Give model and tokenizer, loading them again after unpickling."""
        if "_held" not in self.__dict__:
            self._held = self._load()
        return self._held

    def _load_model(self, auto_class="AutoModel"):
        """Give the model, loaded through a class of transformers if it is given by name."""
        if not loading.is_name(self.model):
            return self.model
        return loading.load_model(
            self.model,
            self.revision,
            self.model_params,
            resolve_device(self.device, type(self).__name__),
            loading.resolve_dtype(self.dtype),
            auto_class,
        )

    def _load_tokenizer(self):
        return loading.find_tokenizer(
            self.tokenizer, self.model, self.revision, self.tokenizer_params
        )

    def _family(self):
        """Give the place where this estimator and its clones hold what was loaded last."""
        return self.__dict__.setdefault("_held_by_clones", {})

    def _resolve_max_length(self, model, tokenizer):
        table = position_limit(model)
        if self.max_length is not None:
            if table is not None and self.max_length > table:
                raise ValueError(
                    f"max_length={self.max_length} exceeds the {table} positions of "
                    f"{type(model).__name__}. Lower it, or use long_text='windows'."
                )
            return int(self.max_length)
        named = (
            table,
            getattr(tokenizer, "model_max_length", None),
            getattr(getattr(model, "config", None), "max_position_embeddings", None),
        )
        # A tokenizer without a limit says 1e30; some configurations say 0 or -1.
        return min((int(n) for n in named if n and 0 < n < 10**7), default=_DEFAULT_LENGTH)

    def _probe_ids(self, tokenizer):
        ids = np.array(tokenizer("A text.", verbose=False)["input_ids"], dtype=np.int64)
        if self.granularity == "cls":
            _check_cls(ids[:1], tokenizer)
        return ids[: min(8, self.max_length_)] if len(ids) else np.zeros(1, dtype=np.int64)

    def _tokenize(self, texts: Texts) -> Tokens:
        model, tokenizer = self._loaded()
        tokens = tokenize(tokenizer, texts, want_words=self.granularity == "word")
        _check_vocabulary(tokens.ids, model, tokenizer)
        if self.granularity == "cls":
            starts = tokens.bounds[:-1][np.diff(tokens.bounds) > 0]
            _check_cls(tokens.ids[starts], tokenizer)
        return tokens

    def _plan(self, tokens: Tokens, texts: Texts) -> Plan:
        self._warn_if_truncated(np.diff(tokens.bounds))
        return self._plan_silently(tokens, texts)

    def _plan_silently(self, tokens: Tokens, texts: Texts) -> Plan:
        side = getattr(self._loaded()[1], "truncation_side", "right")
        sequences = cut(tokens, self.max_length_, self.long_text, side)
        return make_plan(
            tokens, texts, sequences, self.granularity, self.aggregation, self.skip_first
        )

    def _warn_if_truncated(self, n_tokens: np.ndarray) -> None:
        n_long = int((n_tokens > self.max_length_).sum())
        if n_long and self.long_text == "truncate":
            warnings.warn(
                f"{n_long} of {len(n_tokens)} texts have more than "
                f"max_length={self.max_length_} tokens and were truncated. Raise max_length, or "
                "use long_text='windows'.",
                UserWarning,
                stacklevel=4,
            )

    def _rows(self, tokens: Tokens, plan: Plan, texts: Texts) -> Rows:
        specials = special_strings(tokens, plan, self._loaded()[1])
        return Rows(plan.text, plan.start, plan.end, texts.texts, specials)

    def _run(self, tokens: Tokens, plan: Plan, batch_size: int | None = None) -> np.ndarray:
        """Run a plan as it is, without the cache."""
        setup = self._setup()
        if batch_size is not None:
            setup = setup._replace(batch_size=batch_size)
        pool = Pool(plan.sizes, self.n_features_out_, self.aggregation)
        with self._bar(n_run(plan)) as bar:
            return run_plan(setup, tokens, plan, pool, bar)

    def _setup(self) -> Setup:
        model, tokenizer = self._loaded()
        return Setup(
            model=model,
            tokenizer=tokenizer,
            layers=self.layer_names_,
            n_features=self.n_features_out_,
            aggregation=self.aggregation,
            batch_size=self.batch_size,
            tokenize=self._tokenize,
            plan=self._plan_silently,
        )

    def _bar(self, total=None):
        from tqdm import tqdm

        return tqdm(
            desc=", ".join(self.layer_names_),
            total=total,
            unit="token",
            unit_scale=True,
            disable=not self.progress,
        )

    def _cache_group(self, model, tokenizer):
        """Give what holds the rows of this model at these settings."""
        settings = {
            "layers": self.layer_names_,
            "granularity": self.granularity,
            "aggregation": self.aggregation if self.granularity in POOLED else None,
            "max_length": self.max_length_,
            "long_text": self.long_text,
            "skip_first": self.skip_first,
        }
        return open_group(
            self.cache,
            self.cache_size,
            self._family(),
            model,
            tokenizer,
            self.n_features_out_,
            settings,
            type(self).__name__,
        )

    def __sklearn_clone__(self):
        copy = super().__sklearn_clone__()
        copy._held_by_clones = self._family()
        return copy

    def __getstate__(self):
        if isinstance(self.model, torch.nn.Module):
            loading.warn_if_heavy(self.model)
        state = dict(super().__getstate__())
        for name in ("_held", "_held_by_clones"):
            state.pop(name, None)
        return state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _check_cls(first_ids: np.ndarray, tokenizer) -> None:
    cls_id = getattr(tokenizer, "cls_token_id", None)
    if cls_id is None or (first_ids != cls_id).any():
        why = "has none" if cls_id is None else "does not put it first"
        raise ValueError(
            f"granularity='cls' needs a tokenizer with a cls token at position 0; "
            f"{type(tokenizer).__name__} {why}. Use granularity='sample'."
        )


def _check_vocabulary(ids: np.ndarray, model, tokenizer) -> None:
    size = vocabulary_size(model)
    if size is not None and len(ids) and ids.max() >= size:
        raise ValueError(
            f"{type(tokenizer).__name__} gives the token id {ids.max()}, and "
            f"{type(model).__name__} knows {size} ids: they do not belong together. Pass the "
            "tokenizer of this model."
        )


def vocabulary_size(model) -> int | None:
    """Give the number of token ids that a model knows, None where it does not say."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return None


Extractor = TransformerActivationExtractor
