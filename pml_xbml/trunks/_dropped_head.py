"""Says which layers of a user's own are dropped when a network is wrapped."""

from __future__ import annotations

import logging

import torch

from ._pool_location import PoolLocation

# pytorch-metric-learning's.
_LOGGER = logging.getLogger("PML")

_NUM_CLASSES_OF_IMAGENET = 1000


def warn_of_dropped_head(network: torch.nn.Module, location: PoolLocation) -> None:
    """Warns unless all layers behind the average are what the network's library puts there.

    That is norms, and a classifier of as many classes as the library's weights have. All else may have been
    trained, or may be what embeds.

    Args:
        network: the network before it is wrapped.
        location: where it averages.
    """
    library = str(getattr(network.forward, "__module__", None)).partition(".")[0]
    is_known = library in ("torchvision", "timm", "pretrainedmodels")
    dropped = [
        f"{name} ({_described(module)})"
        for name, module in _layers(network, location)
        if not (is_known and (_is_norm(module) or _num_outputs(module) == _num_classes(network)))
    ]
    if not dropped:
        return
    _LOGGER.warning(
        "PrototypePoolingTrunk drops what follows the average of %s: %s. To keep a head, take it before the "
        "network is wrapped, embedder = %s, and train it as the embedder behind the trunk.",
        type(network).__name__,
        ", ".join(dropped),
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


def _num_outputs(module: torch.nn.Module) -> int | None:
    return getattr(module, "out_features", getattr(module, "out_channels", None))


def _num_classes(network: torch.nn.Module) -> int:
    """The classes of the library's weights for the network."""
    config = getattr(network, "pretrained_cfg", None)
    of_timm = config.get("num_classes") if isinstance(config, dict) else None
    return int(of_timm or _NUM_CLASSES_OF_IMAGENET)


def _described(module: torch.nn.Module) -> str:
    sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
    shape = f"({sizes[0]}, {sizes[1]})" if None not in sizes else ""
    return type(module).__name__ + shape
