"""Runs of a network that are not training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def evaluation(network: torch.nn.Module) -> Iterator[None]:
    """Puts the network into evaluation mode without gradients; every module gets its mode back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
