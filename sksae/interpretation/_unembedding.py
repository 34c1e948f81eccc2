"""How a language model reads a direction out: its final norm, then its unembedding."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ..activations._layers import find_layer

# Modules between the last hidden state and the unembedding, in the order of the forward pass.
_FINAL = (
    ("model.norm",),  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo
    ("transformer.ln_f",),  # GPT-2, GPT-J, GPT-Neo, Falcon, BLOOM
    ("gpt_neox.final_layer_norm",),
    ("model.decoder.final_layer_norm",),  # OPT
    ("model.final_layernorm",),  # Phi
    ("transformer.norm_f",),  # MPT
    ("backbone.norm_f",),  # Mamba
    ("model.language_model.norm",),  # language models that also see
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),  # BERT
    ("lm_head.dense", "lm_head.layer_norm"),  # RoBERTa
    ("vocab_transform", "vocab_layer_norm"),  # DistilBERT
)


def output_weights(model: nn.Module, owner: str) -> torch.Tensor:
    """Give the unembedding, of shape (n_vocabulary, n_features).

    Raises
    ------
    ValueError
        If the model has none.
    """
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    weight = getattr(head, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise ValueError(
            f"{owner} reads directions out through the model's output embeddings, and "
            f"{type(model).__name__} has none. Pass the model with its language head, as "
            "AutoModelForCausalLM or AutoModelForMaskedLM load it."
        )
    return weight.detach()


def final_modules(model: nn.Module, norm: Any, owner: str) -> dict[str, nn.Module]:
    """Find what stands between the last hidden state and the unembedding.

    Parameters
    ----------
    model : torch.nn.Module
    norm : "auto", None, str or list of str
        Module paths, as `LogitLens` takes them.
    owner : str
        For the messages.

    Returns
    -------
    dict of str to torch.nn.Module
        By path, in the order in which they run.
    """
    modules = dict(model.named_modules())
    if norm is None:
        return {}
    if norm != "auto":
        paths = [norm] if isinstance(norm, str) else list(norm)
        return {name: modules[name] for name in (find_layer(model, path) for path in paths)}
    for known in _FINAL:
        if all(name in modules for name in known):
            return {name: modules[name] for name in known}
    raise ValueError(
        f"norm='auto' of {owner} does not know where {type(model).__name__} has its final norm. "
        "Pass norm=, its module path, or norm=None if there is none."
    )


def read_through(directions: torch.Tensor, modules: dict[str, nn.Module]) -> torch.Tensor:
    """Send directions through linear layers and norms, without biases and divisions.

    A norm keeps what does not depend on the length of its input: the centering, if it
    centers, and the gain of each feature.
    """
    for name, module in modules.items():
        if isinstance(module, nn.Linear):
            directions = directions @ module.weight.detach().to(directions).T
            continue
        gain, centers = _probed(name, module, directions.shape[1])
        if centers:
            directions = directions - directions.mean(dim=1, keepdim=True)
        directions = directions * gain.to(directions)
    return directions


def _probed(name: str, norm: nn.Module, n_features: int) -> tuple[torch.Tensor, bool]:
    """Find the gains of a norm, and whether it centers, by running it.

    Classes differ in where they keep gains (Gemma's are ``1 + weight``); their outputs do
    not. The first input has mean 0 and no feature at 0, so that its output is the same
    whether or not the norm centers; a second one tells, and a third one checks.
    """
    first = next(norm.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    generator = torch.Generator().manual_seed(0)
    ramp = torch.ones(n_features)
    ramp[-1] = 1 - n_features
    other = torch.randn(n_features, generator=generator) + 1
    # Large, so that the epsilon of the division does not count.
    inputs = 1000 * torch.stack([torch.zeros(n_features), ramp, other]).to(device)
    try:
        with torch.no_grad():
            zero, at_ramp, at_other = deepcopy(norm).float().forward(inputs)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ValueError(_no_norm(name, norm, n_features)) from exc
    gain = (at_ramp - zero) / inputs[1] * inputs[1].square().mean().sqrt()
    for centers in (False, True):
        x = inputs[2] - inputs[2].mean() if centers else inputs[2]
        expected = gain * x / x.square().mean().sqrt()
        if torch.allclose(
            at_other - zero, expected, rtol=1e-3, atol=1e-3 * float(gain.abs().max())
        ):
            return gain, centers
    raise ValueError(_no_norm(name, norm, n_features))


def _no_norm(name: str, norm: nn.Module, n_features: int) -> str:
    return (
        f"Module '{name}' ({type(norm).__name__}) is neither a linear layer nor a norm of "
        f"{n_features} features. Pass norm=, the path of the model's final norm, or norm=None."
    )
