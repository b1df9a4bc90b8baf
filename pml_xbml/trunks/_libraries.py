"""Which modules of a network are code of torchvision, timm or pretrainedmodels; none of them is imported."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._pool_location import PoolLocation
from ._watched_run import Run

LIBRARIES = ("torchvision", "timm", "pretrainedmodels")

_NAMES_OF_CLASSIFIERS = ("fc", "classifier", "head", "heads", "last_linear", "last_conv")


def package_of(of: type) -> str:
    return of.__module__.partition(".")[0]


def runs_code_of_a_library(module: torch.nn.Module) -> bool:
    """Also where a class of a user's own inherits its forward, or the library has replaced it."""
    return str(getattr(module.forward, "__module__", None)).partition(".")[0] in LIBRARIES


def parents_of(name: str) -> list[str]:
    """Dotted names of the modules that a module is in, from the network on."""
    return ["", *(name[:position] for position, letter in enumerate(name) if letter == ".")]


def classifier_in_front(network: torch.nn.Module, location: PoolLocation, run: Run) -> str | None:
    """The layer in front of a pool that stands where a network of a library has its classifier, if any.

    By its place, since whoever changes the number of classes puts another layer there, and what the network
    says of its classes, if anything, is not changed with it.
    """
    assert location.pool is not None
    classifiers = tuple(f"{name}." for name in _classifiers(network, location.pool))
    end = next(call.end for call in run.calls if call.name == location.pool)
    for name, module in network.named_modules():
        has_parameters = any(True for _ in module.parameters(recurse=False))
        ran = any(call.name == name and call.end < end for call in run.calls)
        if has_parameters and f"{name}.".startswith(classifiers) and ran:
            return name
    return None


def _classifiers(network: torch.nn.Module, pool: str) -> Iterator[str]:
    """Dotted names of the classifiers of the library's networks that a pool is in."""
    for parent in parents_of(pool):
        owner = network.get_submodule(parent)
        if not runs_code_of_a_library(owner):
            continue
        get_classifier = getattr(owner, "get_classifier", None)
        if callable(get_classifier):
            # timm's networks say; a "head" of theirs may be part of the backbone.
            found = get_classifier()
            found = found if isinstance(found, tuple) else (found,)
            names = [name for name, module in owner.named_modules() if any(module is of for of in found)]
        else:
            names = [name for name, _ in owner.named_children() if name in _NAMES_OF_CLASSIFIERS]
        yield from (f"{parent}.{name}".lstrip(".") for name in names)
