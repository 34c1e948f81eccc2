"""LogitLens: concepts named by the tokens that their directions speak for."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, validate_data

from .._device import resolve_device
from .._sklearn import HasMethods, Interval, StrOptions, fit_context
from ..activations import _loading as loading
from ..activations._sharing import SharesModel
from ..estimators import BaseSAE
from ..metrics._checks import check_matrix
from ._base import ConceptInterpreter
from ._rendering import visible
from ._unembedding import final_modules, output_weights, read_through

_BLOCK_VALUES = 2**24
_NAMED_TOKENS = 3


class TokenLogit(NamedTuple):
    """A token of the vocabulary, and what a direction adds to its logit.

    Parameters
    ----------
    token : str
        The string that it stands for, leading white space included.
    id : int
        Its row in the unembedding.
    logit : float
        What a code of 1 adds; see `LogitLens`.
    """

    token: str
    id: int
    logit: float


class ConceptTokens(NamedTuple):
    """The tokens that a concept promotes, and those that it suppresses, strongest first.

    Parameters
    ----------
    promoted : tuple of TokenLogit
        From the largest logit downwards.
    suppressed : tuple of TokenLogit
        From the smallest logit upwards.
    """

    promoted: tuple[TokenLogit, ...]
    suppressed: tuple[TokenLogit, ...]


class LogitLens(SharesModel, ConceptInterpreter):
    """Name each concept by the tokens that its direction promotes in the model's output.

    A concept writes its dictionary row into the hidden state. Read out as if the layers
    after it did nothing (nostalgebraist (2020) [1]_; Neuronpedia and SAEDashboard show the
    same of each concept), the row ``d`` raises and lowers the logits of the vocabulary by

        ``logits = W_U (g * c(d / |d|))``

    with the unembedding ``W_U`` and the final norm's gains ``g``; ``c`` takes the mean off
    where the final norm does (LayerNorm; not RMSNorm). Biases are left out, and so is the
    division by the hidden state's size, which is positive and the same for all tokens. A
    logit is thus what a code of 1 adds (of the rows of an SAE, whose length is 1), in a
    hidden state of root mean square (for LayerNorm, standard deviation) 1.

    The dictionary alone decides; codes pass through unchanged, and tell dead concepts.

    Parameters
    ----------
    model : str, path or torch.nn.Module
        A language model with its head: an object, which clones share, or a name or folder
        that transformers loads (a causal model unless its configuration names a masked
        one).
    components : BaseSAE or array-like of shape (nb_concepts, n_features), default=None
        The dictionary, or the SAE that has it: fitted, or fitted by then, as is the
        SAE before this step in a pipeline. See Notes.
    tokenizer : str, path or tokenizer, default=None
        None takes the tokenizer that goes with the model's name or folder.
    k : int, default=10
        Most tokens of either kind, at most the size of the vocabulary.
    norm : "auto", None, str or list of str, default="auto"
        Module path of the final norm, or of several modules in the order in which they
        run, each a norm or a linear layer. "auto" knows the usual architectures. None
        reads the direction out as it is.
    concepts_indices : "all", int or array-like of int, default="all"
        Dictionary rows to interpret.
    device : str or torch.device, default="auto"
        For a model given by name. An object stays where it is.

    Attributes
    ----------
    interpretations_ : dict of int to ConceptTokens, or to None
        ``promoted`` and ``suppressed`` tokens of each concept, strongest first, each with
        ``token``, ``id`` and ``logit``. None for a dead concept: no code of it in fit is
        other than 0, or its row is zeros.
    norm_names_ : list of str
        Full paths of the modules that stand between hidden state and unembedding.
    n_features_in_ : int
        Number of columns (concepts).
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    TopKInputs : What activates a concept, where this is what it does.

    Notes
    -----
    The nearer a layer is to the output, the more the reading means; in early layers it can
    mean nothing. It is one concept's direct effect: what later layers make of it is left
    out.

    The dictionary must live in the hidden state that goes into the final norm. If a step
    before the SAE rescales it, bring the rows back: ``sae.components_ * scaler.scale_``
    for a ``StandardScaler``.

    In a pipeline pass the very SAE that stands before: ``Pipeline([("acts", acts), ("sae",
    sae), ("lens", LogitLens(model, sae))])``. Clones of that pipeline copy the SAE twice
    and refuse to fit, rather than read another dictionary than that of their codes.

    In heads with a linear layer before the norm (BERT, RoBERTa, DistilBERT) that layer is
    part of the reading, without bias and with its activation replaced by the tangent at 0.

    Fitting needs ``nb_concepts * n_features * n_vocabulary`` products, and keeps no
    weights. Pickling keeps a model object with its weights, a model given by name as the
    name.

    References
    ----------
    .. [1] nostalgebraist (2020), "interpreting GPT: the logit lens", LessWrong.

    Examples
    --------
    >>> import torch
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "sea": 1, "rock": 2}, "[UNK]"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> model = LlamaForCausalLM(LlamaConfig(
    ...     vocab_size=3, hidden_size=2, intermediate_size=2, num_hidden_layers=1,
    ...     num_attention_heads=1))
    >>> model.lm_head.weight.data = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-1.0, 2.0]])
    >>> lens = LogitLens(model, [[1.0, 0.0], [0.0, 1.0]], tokenizer=tokenizer, k=1).fit()
    >>> lens.interpretations_[0].promoted
    (TokenLogit(token='sea', id=1, logit=3.0),)
    >>> list(lens.get_feature_names_out())
    ['0: sea', '1: rock']
    """

    _parameter_constraints: dict = {
        "model": [str, os.PathLike, torch.nn.Module],
        "components": [None, BaseSAE, "array-like"],
        "tokenizer": [None, str, os.PathLike, HasMethods(["convert_ids_to_tokens"])],
        "k": [Interval(Integral, 1, None, closed="left")],
        "norm": [None, str, list, tuple],
        "concepts_indices": [StrOptions({"all"}), Integral, "array-like"],
        "device": [str, torch.device],
    }

    def __init__(
        self,
        model,
        components=None,
        *,
        tokenizer=None,
        k=10,
        norm="auto",
        concepts_indices="all",
        device="auto",
    ):
        self.model = model
        self.components = components
        self.tokenizer = tokenizer
        self.k = k
        self.norm = norm
        self.concepts_indices = concepts_indices
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X=None, y=None, *, units=None):
        """Read each dictionary row out.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, nb_concepts), default=None
            Codes. A concept that is 0 in all rows is dead. Without codes none is.
        y : None
            Ignored, whatever its length.
        units : array-like of str, default=None
            Ignored.

        Returns
        -------
        self : LogitLens
            The fitted transformer.

        Raises
        ------
        ValueError
            If there is no dictionary, if its width is not that of the model, if the model
            has no output embeddings, or if its final norm is not found.
        NotFittedError
            If ``components`` is an SAE that is not fitted.
        """
        directions = self._directions()
        live = self._live(X, directions)
        concepts = self._concepts()
        model = self._load_model()
        tokenizer = loading.find_tokenizer(self.tokenizer, self.model)
        weights = output_weights(model, type(self).__name__)[: len(tokenizer)]
        modules = final_modules(model, self.norm, type(self).__name__)
        self._check_width(directions, weights, modules)
        found = dict.fromkeys(concepts.tolist())
        chosen = concepts[live[concepts]]
        read = self._read(directions[chosen], weights, modules)
        tokens = _Tokens(tokenizer)
        for concept, *sides in zip(chosen.tolist(), *read, strict=True):
            found[concept] = ConceptTokens(*(tokens.listed(*side) for side in sides))
        self.norm_names_ = list(modules)
        self.interpretations_ = found
        return self

    def to_frame(self):
        """Give the tokens as a table, one line per concept and token.

        Returns
        -------
        table : pandas.DataFrame
            Columns concept, effect ("promoted" or "suppressed"), rank (from 1), token, id
            and logit. Dead concepts have no line.
        """
        check_is_fitted(self)
        import pandas as pd

        lines = [
            (concept, effect, rank, *token)
            for concept, found in self.interpretations_.items()
            for effect in ConceptTokens._fields
            for rank, token in enumerate(getattr(found, effect, ()), start=1)
        ]
        return pd.DataFrame(lines, columns=["concept", "effect", "rank", "token", "id", "logit"])

    def _name(self, interpretation):
        return ", ".join(self._label(interpretation))

    def _label(self, interpretation):
        shown = (visible(t.token).strip() for t in interpretation.promoted)
        return list(dict.fromkeys(shown))[:_NAMED_TOKENS]

    def _directions(self):
        """Give the dictionary with rows of unit length; rows of zeros stay."""
        components = self.components
        if components is None:
            raise ValueError(
                "LogitLens needs a dictionary. Pass components=, a fitted SAE, its components_ or "
                "the SAE that stands before it in the pipeline."
            )
        if isinstance(components, BaseSAE):
            components = _dictionary(components)
        components = check_matrix(components, "components", type(self).__name__)
        if sparse.issparse(components):
            components = components.toarray()
        norms = np.linalg.norm(components, axis=1, keepdims=True)
        return components / np.where(norms > 0, norms, 1)

    def _live(self, X, directions):
        """Tell which concepts are not dead; sets ``n_features_in_``."""
        live = directions.any(axis=1)
        if X is None:
            self.n_features_in_ = len(directions)
            return live
        codes = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        if codes.shape[1] != len(directions):
            raise ValueError(
                f"X has {codes.shape[1]} columns and the components of LogitLens {len(directions)} "
                "rows: one for each concept. Pass the codes and the dictionary of the same SAE."
            )
        if sparse.issparse(codes):
            counts = np.bincount(codes.indices[codes.data != 0], minlength=codes.shape[1])
            return live & (counts > 0)
        return live & (codes != 0).any(axis=0)

    def _load_model(self):
        if not loading.is_name(self.model):
            return self.model
        name, device = self.model, resolve_device(self.device, type(self).__name__)
        auto_class = loading.language_class(name)
        return loading.load_model(name, None, None, device, torch.float32, auto_class)

    def _check_width(self, directions, weights, modules):
        linear = (m.in_features for m in modules.values() if isinstance(m, torch.nn.Linear))
        width = next(linear, weights.shape[1])
        if directions.shape[1] != width:
            raise ValueError(
                f"The components of LogitLens have {directions.shape[1]} features, and the hidden "
                f"states of this model {width}. Pass the dictionary of an SAE that was fitted on "
                "hidden states of this model."
            )

    def _read(self, directions, weights, modules):
        """Give (ids, logits) of the k tokens from the top, and of those from the bottom."""
        rows = torch.as_tensor(directions, dtype=torch.float32, device=weights.device)
        weights = weights.float()
        k = min(self.k, len(weights))
        top: list[Any] = []
        bottom: list[Any] = []
        for block in read_through(rows, modules).split(max(1, _BLOCK_VALUES // len(weights))):
            logits = block @ weights.T
            for side, largest in ((top, True), (bottom, False)):
                best = logits.topk(k, largest=largest)
                side += zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return top, bottom

    def __getstate__(self):
        if isinstance(self.model, torch.nn.Module):
            loading.warn_if_heavy(self.model)
        return super().__getstate__()


def _dictionary(sae: Any) -> np.ndarray:
    try:
        check_is_fitted(sae)
    except NotFittedError as exc:
        raise NotFittedError(
            f"The components of LogitLens are those of a {type(sae).__name__} that is not "
            "fitted. Fit it before, or as an earlier step of the same pipeline; in a clone of a "
            "pipeline it is another object than that step: pass components=sae.components_."
        ) from exc
    return sae.components_


class _Tokens:
    """The strings of a tokenizer's ids, each decoded once."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._strings: dict[int, str] = {}

    def listed(self, ids: list[int], logits: list[float]) -> tuple[TokenLogit, ...]:
        strings = [self._string(number) for number in ids]
        return tuple(map(TokenLogit, strings, ids, logits))

    def _string(self, number: int) -> str:
        if number not in self._strings:
            string = self._tokenizer.decode([number], clean_up_tokenization_spaces=False)
            if not string or "\ufffd" in string:  # part of a character
                string = self._tokenizer.convert_ids_to_tokens(number) or f"[{number}]"
            self._strings[number] = string
        return self._strings[number]
