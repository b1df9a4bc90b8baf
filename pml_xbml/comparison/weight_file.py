import pickle
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

_SHOWN = 3


def load_weights(network: nn.Module, path: str, name: str) -> None:
    """Loads a file with a state dict into a network.

    Args:
        network: gets the weights.
        path: the file, as ``torch.save(network.state_dict(), path)`` writes it.
        name: what the network is called in errors.

    Raises:
        ValueError: if the file holds no state dict, or one that does not fit; the message names the keys.
    """
    state = _read(path)
    try:
        network.load_state_dict(state)
    except Exception as error:  # of a network that loads in a way of its own too
        raise ValueError(
            f"pretrained must be a file with the state dict of {name}, got {path!r}, one "
            f"{_misfit(network.state_dict(), state) or f'that does not load: {error}'}; save it with "
            "torch.save(network.state_dict(), path)"
        ) from error


def _read(path: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"pretrained must be a file with a state dict, got {path!r}, which holds other objects or is no "
            "file of torch.save; save it with torch.save(network.state_dict(), path)"
        ) from error
    except Exception as error:  # torch.load raises whatever its readers do
        raise ValueError(
            f"pretrained must be a file with a state dict, got {path!r}, which is truncated or no file of "
            "torch.save; download or save it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"pretrained must be a file with a state dict, got {path!r}, a {type(state).__name__}"
        )
    nested = [str(key) for key, value in state.items() if isinstance(value, dict)]
    if nested and not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"pretrained must be a file with a state dict, got {path!r}, a checkpoint with "
            f"{', '.join(nested)}; save its state dict alone, such as "
            f"torch.save(checkpoint[{nested[0]!r}], path)"
        )
    return state


def _misfit(own: dict[str, Any], state: dict[str, Any]) -> str:
    shared = own.keys() & state.keys()
    return ", ".join(
        [
            *_named("without", own.keys() - state.keys()),
            *_named("with the unknown", state.keys() - own.keys()),
            *_named("with other sizes of", {key for key in shared if not _fits(own, state, key)}),
        ]
    )


def _fits(own: dict[str, Any], state: dict[str, Any], key: str) -> bool:
    """Entries that are no tensors are the network's own affair."""
    tensors = own[key], state[key]
    return not isinstance(tensors[0], Tensor) or (
        isinstance(tensors[1], Tensor) and tensors[0].shape == tensors[1].shape
    )


def _named(what: str, keys: Collection[str]) -> list[str]:
    if not keys:
        return []
    shown = ", ".join(sorted(map(str, keys))[:_SHOWN])
    return [f"{what} {shown}" + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")]
