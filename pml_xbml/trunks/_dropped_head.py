"""Says which layers of a user's own are dropped when a network is wrapped."""

from __future__ import annotations

import torch

from .. import _pml
from ._pool_location import PoolLocation

_LIBRARIES = ("torchvision", "timm", "pretrainedmodels")
_NUM_CLASSES_OF_IMAGENET = 1000


def warn_of_dropped_head(network: torch.nn.Module, location: PoolLocation) -> None:
    """Warns unless all layers behind the average are what the network's library puts there.

    That is a classifier of as many classes as the library's weights have, and norms in front of it. All else
    may have been trained, or may be what embeds.

    Args:
        network: the network before it is wrapped.
        location: where it averages.
    """
    dropped = _layers(network, location)
    classifiers = [name for name, module in dropped if _num_outputs(module) == _num_classes(network, name)]
    norms = [name for name, module in dropped if _is_norm(module)]
    if not dropped or (classifiers and len(classifiers) + len(norms) == len(dropped)):
        return
    _pml.logger().warning(
        "PrototypePoolingTrunk drops what follows the average of %s: %s. To keep a head, take it before the "
        "network is wrapped, embedder = %s, and train it as the embedder behind the trunk.",
        type(network).__name__,
        ", ".join(f"{name} ({_described(module)})" for name, module in dropped),
        f"network.{location.head_modules[0]}",
    )


def _layers(network: torch.nn.Module, location: PoolLocation) -> list[tuple[str, torch.nn.Module]]:
    """The dropped modules that have parameters of their own."""
    return [
        (f"{head}.{name}" if name else head, module)
        for head in location.head_modules
        for name, module in network.get_submodule(head).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def _is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _num_outputs(module: torch.nn.Module) -> int:
    return getattr(module, "out_features", getattr(module, "out_channels", 0))


def _num_classes(network: torch.nn.Module, name: str) -> int | None:
    """The classes of the library's weights for the network that has a layer; None if it is of no library."""
    parents = [name[:position] for position, letter in enumerate(name) if letter == "."]
    for owner in map(network.get_submodule, ["", *parents]):
        if str(getattr(owner.forward, "__module__", None)).partition(".")[0] in _LIBRARIES:
            config = getattr(owner, "pretrained_cfg", None)
            of_timm = config.get("num_classes") if isinstance(config, dict) else None
            return int(of_timm or _NUM_CLASSES_OF_IMAGENET)
    return None


def _described(module: torch.nn.Module) -> str:
    sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
    shape = f"({sizes[0]}, {sizes[1]})" if None not in sizes else ""
    return type(module).__name__ + shape
