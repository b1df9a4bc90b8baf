"""Where a network averages its local features, and the network with something else in that place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ._known_pools import RETURNED, Features, returned_features

# Classifiers that run in training alone, in the Inception networks of torchvision, timm and pretrainedmodels.
AUXILIARY_CLASSIFIERS = ("aux1", "aux2", "AuxLogits")


@dataclass(frozen=True)
class PoolLocation:
    """Where a network averages its local features for the last time.

    Attributes:
        num_features: channels of the local features.
        head_modules: dotted names of the modules that work on the average.
        pool: dotted name of the module that averages. None where a function call does, or nothing.
        features: gives the local features, from the network and the images, where no module averages.
        returns_average: whether the network without ``head_modules`` returns the average of ``features``.
    """

    num_features: int
    head_modules: tuple[str, ...] = ()
    pool: str | None = None
    features: Features = returned_features
    returns_average: bool = False

    @property
    def is_output(self) -> bool:
        """Whether the network returns the local features."""
        return self.features in RETURNED and self.pool is None

    @property
    def dropped_modules(self) -> tuple[str, ...]:
        """Whose entries a checkpoint of the plain network may have."""
        return (*self.head_modules, *AUXILIARY_CLASSIFIERS)


class GlobalAverage(torch.nn.Module):
    """The plain average of feature maps (B, C, H, W) or tokens (B, N, C), as (B, C)."""

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 3:
            return features.mean(1)
        return F.adaptive_avg_pool2d(features, 1).flatten(1)


class PooledFeatures(torch.nn.Module):
    """A network up to its local features, which it averages by a function call or not at all, and a pool."""

    def __init__(self, network: torch.nn.Module, features: Features, pooling: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(self.features(self.network, images))
        return pooled


def pooled_by(network: torch.nn.Module, location: PoolLocation, pooling: torch.nn.Module) -> torch.nn.Module:
    """Puts a pooling into a network, in place, and drops what works on the average.

    Args:
        network: the network.
        location: where it averages.
        pooling: from local features to (B, C).

    Returns:
        The network, or a module around it where no module of its own averages.
    """
    replace_modules(network, _replacements(network, location, pooling))
    if hasattr(network, "aux_logits"):
        # With auxiliary classifiers GoogLeNet and Inception return a tuple in training.
        network.aux_logits = False  # type: ignore[assignment]
    return network if location.pool is not None else PooledFeatures(network, location.features, pooling)


@contextmanager
def tried_with(
    network: torch.nn.Module, location: PoolLocation, pooling: torch.nn.Module
) -> Iterator[torch.nn.Module]:
    """:func:`pooled_by` for as long as the context lasts; afterwards the network is as it was."""
    originals = {name: network.get_submodule(name) for name in _replacements(network, location, pooling)}
    aux_logits = getattr(network, "aux_logits", None)
    try:
        yield pooled_by(network, location, pooling)
    finally:
        replace_modules(network, originals)
        if aux_logits is not None:
            network.aux_logits = aux_logits


def replace_modules(network: torch.nn.Module, modules: Mapping[str, torch.nn.Module]) -> None:
    """Sets modules by their dotted names."""
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module)


def _replacements(
    network: torch.nn.Module, location: PoolLocation, pooling: torch.nn.Module
) -> dict[str, torch.nn.Module]:
    auxiliary = [name for name in AUXILIARY_CLASSIFIERS if getattr(network, name, None) is not None]
    replacements: dict[str, torch.nn.Module] = {
        name: torch.nn.Identity() for name in (*location.head_modules, *auxiliary)
    }
    if location.pool is not None:
        replacements[location.pool] = pooling
    return replacements
