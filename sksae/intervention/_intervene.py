"""intervene: a model that runs on with some concepts set, scaled or ablated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..activations._layers import find_layers
from ..activations._texts import _special_ids
from ._edits import Editor, as_affine, concept_index
from ._hooks import replacing
from ._positions import Pass, Select, Watch, selection
from ._site import Parts, _path_in

_GRANULARITIES = ("token", "all_tokens", "cls")


@contextmanager
def intervene(model, layer, sae, edits, positions=None, keep_error=True) -> Iterator[None]:
    r"""Let a model run with the codes of some concepts changed, as long as the block lasts.

    In every forward pass of the model, those of ``generate`` included, the SAE encodes the
    hidden states at the layer, the codes of the concepts are edited, and the difference that
    this makes to the reconstruction is added to the hidden states::

        with intervene(model, 12, sae, {417: 60.0, 81: "ablate"}):
            ids = model.generate(**inputs)

    Parameters
    ----------
    model : torch.nn.Module or None
        The model that runs in the block. It is used where and as it is. None takes the
        extractor's, if ``sae`` is a pipeline with one that holds the model as an object.
    layer : str, int or None
        One layer, as the extractor takes it: a module path, an unambiguous end of one, or
        the number of a block. None takes the extractor's.
    sae : BaseSAE or Pipeline
        A fitted SAE, or a fitted pipeline of an extractor, steps that have an
        ``inverse_transform``, and an SAE; steps after the SAE are ignored.
    edits : dict of int or str to float, "ablate", Scale or Add
        What becomes of each concept, by its number or name (as the SAE, or a later step of
        the pipeline, names its column). A number sets the code; "ablate" sets it to 0;
        ``Scale(2.0)`` doubles it; ``Add(5.0)`` adds to it. Codes and numbers are in the units
        of the SAE's input; what is usual for a concept, its codes tell. Others keep theirs.
    positions : None, str, int, slice, list of int, mask or callable, default=None
        The tokens whose hidden states are edited; see Notes. None takes those of which the
        pipeline's extractor makes rows, and with a bare SAE all. Padding is left alone.
    keep_error : bool, default=True
        Whether what the SAE does not reconstruct stays in the hidden state. If not, the
        hidden state is the reconstruction from the edited codes, and the model runs
        on what the SAE knows, at the price that `spliced_loss` measures.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If a concept, position or layer does not exist, a number is not finite, or the layer
        has another width than the SAE.
    TypeError
        If the model is no module, or an edit none of the above.

    See Also
    --------
    effects : What edits do to loss and logits, in numbers.
    steering_vector : What `Add` adds.

    Notes
    -----
    With z the codes of a hidden state x, z' the edited ones and d_j the rows of the
    dictionary, x becomes :math:`x + \sum_j (z'_j - z_j) d_j`: the error term of the SAE
    stays in place [1]_, and with no edits x stays as it is. Encoding happens in each pass,
    on the hidden states as they are then: an edited token changes the codes of later layers
    and, where it is attended to, of later tokens. What a concept *does* is shown only as far
    as the dictionary row is a direction that the model uses; large numbers move hidden states
    to where no text takes them, and the model breaks down whatever the concept.

    *Positions* count the tokens of each text from 0, those in a KV cache included and padding
    not, so that they mean the same in a batch padded on either side, and in ``generate`` with
    and without a cache:

    - an int, a list of ints, a slice: tokens at these places, from the first one on
      (``slice(1, None)`` leaves the first token alone, the attention sink of many models);
    - "prompt", "generated": the tokens that ``generate`` is given, and those that it adds. A
      pass that goes on where the last one ended, by one token, generates; any other is a
      prompt. (Assisted generation and chunked prefill are not told apart.)
    - "last": the last token of the prompt and all that are generated, those that a next token
      is chosen from; outside ``generate`` the last token of each text;
    - a bool mask of shape (texts, tokens): of the model's inputs, padding included; tokens
      beyond it are left alone;
    - a callable from ``input_ids`` (texts, tokens) to such a mask. It should judge each token
      by itself, as with a cache it sees one at a time.

    With a pipeline None leaves the extractor's first ``skip_first`` tokens alone and, for
    granularity "token", special tokens; "cls" edits the first token only. The attention mask
    tells what is padding; without one nothing is.

    Blocks nest: of two on one layer, the inner one edits what the outer one gives. Two
    concepts in one block are edited at once, from the same codes. Gradients flow, through the
    codes too; steps before the SAE other than a ``StandardScaler`` let none pass and say so.
    The SAE computes in its own precision and on its own device, the hidden states keep theirs.

    Whatever runs the model inside the block sees the edits, an extractor that shares it too:
    read codes outside the block. ``output_hidden_states=True`` may give the layer's own states.

    References
    ----------
    .. [1] Marks et al. (2024), "Sparse Feature Circuits: Discovering and Editing Interpretable
       Causal Graphs in Language Models", arXiv:2403.19647, section 2.

    Examples
    --------
    A model of one layer, which adds nothing; its output is its hidden state:

    >>> import torch
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> from sksae.intervention import Add
    >>> X, _ = make_activations(n_samples=64, n_features=8, random_state=0)
    >>> sae = TopKSAE(16, top_k=2, nb_epochs=1, device="cpu", random_state=0).fit(X)
    >>> model = torch.nn.Sequential(torch.nn.Identity())
    >>> x = torch.from_numpy(X[:6]).reshape(2, 3, 8)  # 2 texts of 3 tokens
    >>> with intervene(model, "0", sae, {5: Add(2.0)}):
    ...     moved = model(x) - x
    >>> torch.allclose(moved, 2 * sae.get_dictionary()[5].expand(2, 3, 8), atol=1e-6)
    True
    >>> with intervene(model, "0", sae, {}):
    ...     torch.equal(model(x), x)
    True
    """
    parts = Parts.of(sae, "intervene")
    model, path = _place(parts, model, layer)
    editor = Editor(parts, _edits(sae, edits), keep_error)
    select = _default(parts) if positions is None else selection(positions)
    watch = Watch(model, path)

    def replace(state: torch.Tensor) -> torch.Tensor:
        _check_width(parts, path, state)
        chosen = watch.chosen(state.shape, select)
        if chosen is None:
            return editor(state.flatten(0, 1)).view_as(state)
        chosen = chosen.to(state.device)
        new = editor(state[chosen])
        return state.to(new.dtype).masked_scatter(chosen[..., None].expand_as(state), new)

    with watch.listening(), replacing(model, path, replace):
        yield


def _edits(sae: Any, edits: Any) -> dict[int, tuple[float, float]]:
    if not isinstance(edits, Mapping):
        raise TypeError(
            "The 'edits' parameter of intervene must be a dict from concepts to what becomes of "
            f"them, such as {{3: 'ablate'}}. Got {edits!r} instead."
        )
    found: dict[int, tuple[float, float]] = {}
    for concept, edit in edits.items():
        index = concept_index(sae, concept, "intervene")
        if index in found:
            raise ValueError(f"The 'edits' of intervene name concept {index} more than once.")
        found[index] = as_affine(edit, f"The edit of concept {concept!r}")
    return found


def _place(parts: Parts, model: Any, layer: Any) -> tuple[nn.Module, str]:
    """Give the model and the full path of its layer."""
    extractor = parts.extractor
    if model is None and extractor is not None:
        model = extractor.model
    if not isinstance(model, nn.Module):
        raise TypeError(
            "The 'model' parameter of intervene must be the torch module that runs in the block, "
            "or None with a pipeline whose extractor holds it as an object. Got "
            f"{type(model).__name__ if model is None else repr(model)} instead."
        )
    if layer is None:
        if extractor is None:
            raise ValueError(
                "intervene got no extractor, so it needs a layer. Pass one, or the pipeline that "
                "begins with the extractor."
            )
        if len(extractor.layer_names_) > 1:
            raise ValueError(
                "intervene edits the hidden states of one layer, and the extractor gives "
                f"{len(extractor.layer_names_)} side by side. Fit a pipeline for each."
            )
        layer = _path_in(model, extractor.layer_names_[0])
    names = list(find_layers(model, layer))
    if len(names) > 1:
        raise ValueError(f"intervene edits the hidden states of one layer. Got layer={layer!r}.")
    return model, names[0]


def _check_width(parts: Parts, path: str, state: torch.Tensor) -> None:
    if parts.n_features not in (None, state.shape[-1]):
        raise ValueError(
            f"Layer '{path}' has {state.shape[-1]} features, and the SAE was fitted on "
            f"{parts.n_features}. Pass the model and layer of its training rows."
        )


def _default(parts: Parts) -> Select | None:
    """Choose the tokens of which the extractor makes rows; None without an extractor: all."""
    extractor = parts.extractor
    if extractor is None:
        return None
    granularity, first = extractor.granularity, extractor.skip_first
    if granularity not in _GRANULARITIES:
        raise ValueError(
            "intervene edits the hidden states of tokens one by one, and the SAE has learnt rows "
            f"of granularity={granularity!r}. Pass positions, such as slice(None), to edit all "
            "the same, or train on tokens."
        )
    special = torch.tensor(_special_ids(extractor._load_tokenizer()), dtype=torch.int64)

    def select(now: Pass) -> torch.Tensor:
        chosen = now.at >= first
        if granularity == "cls":
            return chosen & (now.at == 0)
        if granularity == "token" and now.ids is not None:
            return chosen & ~torch.isin(now.ids, special.to(now.ids.device))
        return chosen

    return select
