"""Says which layers of a user's own are dropped when a network is wrapped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _pml
from .._evaluation import evaluation
from ._libraries import LIBRARIES, package_of, parents_of, runs_code_of_a_library
from ._pool_location import PoolLocation

_NUM_CLASSES_OF_IMAGENET = 1000

Layers = list[tuple[str, torch.nn.Module]]
"""Dotted names in the network, and modules."""


def warn_of_dropped_head(network: torch.nn.Module, location: PoolLocation) -> None:
    """Warns unless all layers behind the average are what the network's library puts there.

    That is a classifier of as many classes as the library's weights have, and norms in front of it. All else
    may have been trained, or may be what embeds. What changes no features, such as dropout, is no layer.

    Args:
        network: the network before it is wrapped.
        location: where it averages.
    """
    heads = {head: _layers(network, head, location.num_features) for head in location.head_modules}
    dropped = [layer for layers in heads.values() for layer in layers]
    # Of several branches side by side each has a classifier, but none has two: the first would be hidden.
    last = {_branch(network, head, name): (head, name, of) for head in heads for name, of in heads[head]}
    classifiers = [
        (name, module)
        for head, name, module in last.values()
        if _is_classifier(network, head, name, module, location.num_features)
    ]
    others = [layer for layer in dropped if layer not in classifiers]
    if not dropped or (classifiers and all(_is_norm_of_library(network, *layer) for layer in others)):
        return
    _pml.logger().warning(
        "PrototypePoolingTrunk drops what follows the average of %s: %s. %s",
        type(network).__name__,
        ", ".join(f"{name} ({_described(module)})" for name, module in dropped),
        _advice([head for head, layers in heads.items() if layers]),
    )


def _advice(heads: list[str]) -> str:
    if len(heads) == 1:
        return (
            "To keep a head, take it before the network is wrapped, embedder = "
            f"{_expression(heads[0])}, and train it as the embedder behind the trunk."
        )
    return (
        f"To keep a head, take what it consists of ({', '.join(map(_expression, heads))}) before the network "
        "is wrapped, and train it as the embedder behind the trunk."
    )


def _expression(name: str) -> str:
    """Python for a module of the network."""
    parts = name.split(".")
    if not all(part.isdigit() or part.isidentifier() for part in parts):
        return f"network.get_submodule({name!r})"
    return "network" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


# --- What is dropped ---


def _layers(network: torch.nn.Module, head: str, num_features: int) -> Layers:
    """The modules of a head that have parameters or statistics of their own, or change features without."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    features = torch.randn(2, num_features, generator=torch.Generator().manual_seed(0)).to(parameter)
    return list(_layers_of(head, network.get_submodule(head), features))


def _layers_of(name: str, module: torch.nn.Module, features: Tensor) -> Iterator[tuple[str, torch.nn.Module]]:
    if _is_function(module):
        if _changes(module, features):
            yield name, module
        return
    if any(True for _ in _state(module, recurse=False)):
        yield name, module
    for child, of in module.named_children():
        yield from _layers_of(f"{name}.{child}", of, features)


def _state(module: torch.nn.Module, recurse: bool) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(recurse), module.buffers(recurse))


def _is_function(module: torch.nn.Module) -> bool:
    """Whether a module computes something by code that is no library's, or torch's own, without a state."""
    package = package_of(type(module))
    is_container = package == "torch" and any(True for _ in module.children())
    return not is_container and package not in LIBRARIES and not any(True for _ in _state(module, True))


def _changes(module: torch.nn.Module, features: Tensor) -> bool:
    """Whether a module changes vectors and maps of one position in evaluation mode."""
    with evaluation(module), torch.random.fork_rng([features.device] if features.is_cuda else []):
        return not (_keeps(module, features) or _keeps(module, features[:, :, None, None]))


def _keeps(module: torch.nn.Module, features: Tensor) -> bool:
    try:
        output = module(features.clone())
    except Exception:  # whatever a module of a user's own meets
        return False
    return isinstance(output, Tensor) and torch.equal(output.flatten(1), features.flatten(1))


# --- What the library of a network puts there ---


def _branch(network: torch.nn.Module, head: str, name: str) -> str:
    """Dotted name of the module whose layers a layer is one of: a library's own in a head, or the head."""
    inner = [of for of in parents_of(name) if len(of) > len(head)]
    of_library = [of for of in inner if package_of(type(network.get_submodule(of))) in LIBRARIES]
    return of_library[-1] if of_library else head


def _is_classifier(
    network: torch.nn.Module, head: str, name: str, module: torch.nn.Module, num_features: int
) -> bool:
    # Code of a user's own around a layer may do more than the layer.
    around = [of for of in (*parents_of(name), name) if len(of) >= len(head)]
    return (
        _size(module, "out") == _num_classes(network, name)
        and _size(module, "in") == num_features
        and all(package_of(type(network.get_submodule(of))) in ("torch", *LIBRARIES) for of in around)
    )


def _is_norm_of_library(network: torch.nn.Module, name: str, module: torch.nn.Module) -> bool:
    """Whether a library's own code runs a norm, by its name; a user's own is in a container of torch."""
    parent, _, own_name = name.rpartition(".")
    if "norm" not in type(module).__name__.lower():
        return False
    is_named_so = any(word in own_name for word in ("norm", "bn"))
    return package_of(type(module)) in LIBRARIES or (
        is_named_so and package_of(type(network.get_submodule(parent))) in LIBRARIES
    )


def _size(module: torch.nn.Module, side: str) -> int:
    return getattr(module, f"{side}_features", getattr(module, f"{side}_channels", 0))


def _num_classes(network: torch.nn.Module, name: str) -> int | None:
    """The classes of the library's weights for the network that has a layer; None if it is of no library."""
    for owner in map(network.get_submodule, parents_of(name)):
        if runs_code_of_a_library(owner):
            config = getattr(owner, "pretrained_cfg", None)
            of_timm = config.get("num_classes") if isinstance(config, dict) else None
            return int(of_timm or _NUM_CLASSES_OF_IMAGENET)
    return None


def _described(module: torch.nn.Module) -> str:
    sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
    shape = f"({sizes[0]}, {sizes[1]})" if None not in sizes else ""
    return type(module).__name__ + shape
