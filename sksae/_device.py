"""Turning a ``device`` parameter into a torch device that is there."""

from __future__ import annotations

import torch


def resolve_device(
    device: str | torch.device, owner: str, kinds: tuple[str, ...] | None = None
) -> torch.device:
    """Give the torch device that a ``device`` parameter names.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` is CUDA where there is a CUDA device, else the CPU.
    owner : str
        Class name, for the error message.
    kinds : tuple of str, optional
        The kinds of device that will do; by default any.

    Raises
    ------
    ValueError
        If the name is no device, or the device is not on this machine.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as exc:
        raise ValueError(
            f"The 'device' parameter of {owner} must be 'auto' or a torch device such as 'cpu' or "
            f"'cuda:0'. Got {device!r} instead."
        ) from exc
    if kinds is not None and found.type not in kinds:
        raise ValueError(
            f"The 'device' parameter of {owner} must be 'auto' or one of {', '.join(kinds)}, with "
            f"or without a number. Got {str(device)!r} instead."
        )
    n_cuda = torch.cuda.device_count() if found.type == "cuda" else 0
    missing = found.type == "cuda" and (found.index or 0) >= n_cuda
    if missing or (found.type == "mps" and not torch.backends.mps.is_available()):
        there = f"this machine has {n_cuda} CUDA devices" if missing else "this machine has no MPS"
        raise ValueError(
            f"device={str(device)!r} was asked of {owner}, but {there}. "
            "Use device='auto' or device='cpu'."
        )
    return found
