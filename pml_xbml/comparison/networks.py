"""The trunks of a comparison: a small one of its own, torchvision's and timm's."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import nn

from ..trunks import SmallTrunk

SMALL = "small"


def build_network(name: str, weights: str | None = None) -> nn.Module:
    """Build a backbone by name.

    Args:
        name: "small"; a model of torchvision or (when it is installed) of timm; or a function without
            arguments that returns the network, "package.module:function" or "path/to/file.py:function". The
            network averages feature maps or tokens, or gives them.
        weights: None for random weights; a file with a state dict; or a name that the library knows:
            torchvision's, such as "IMAGENET1K_V2", or "DEFAULT", which timm's pretrained weights go by too.

    Returns:
        The network, as its library builds it.

    Raises:
        ValueError: if no library knows the name, there is no such function, it returns no network, or there
            are no such weights.
    """
    from_file = weights is not None and Path(weights).is_file()
    named_weights = None if from_file else weights
    network = _build(name, named_weights)
    if from_file:
        network.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    return network


def _call(name: str) -> nn.Module:
    """The network of the function ``module:function`` or ``file.py:function``."""
    place, _, function = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        make = getattr(module, function)
    except (ImportError, AttributeError, OSError) as error:
        raise ValueError(
            f"trunk must name a function that can be imported, as package.module:function or "
            f"path/to/file.py:function, got {name!r}: {error}"
        ) from error
    network = make()
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"trunk must name a function that returns a torch.nn.Module, got {network!r} of {name!r}"
        )
    return network


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(name: str, weights: str | None) -> nn.Module:
    if ":" in name:
        if weights is not None:
            raise ValueError(
                f"weights: only a file can be loaded into the network of {name}, got {weights!r}; or let the "
                "function load them"
            )
        return _call(name)
    if name == SMALL:
        if weights is not None:
            raise ValueError(
                f"weights: the trunk 'small' has no pretrained weights, got {weights!r}; "
                "leave it out, or give a file with its state dict"
            )
        return SmallTrunk()
    if name in torchvision.models.list_models(module=torchvision.models):
        try:
            network: nn.Module = torchvision.models.get_model(name, weights=weights)
        except (ValueError, KeyError) as error:
            known = [member.name for member in torchvision.models.get_model_weights(name)]
            raise ValueError(
                f"weights must be a file, 'DEFAULT' or one of {known} for {name}, got {weights!r}"
            ) from error
        return network
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(
            f"trunk must be 'small' or the name of a torchvision model, got {name!r}; "
            "timm's models are known too once timm is installed"
        ) from None
    if not timm.is_model(name):
        raise ValueError(f"trunk must be 'small' or the name of a torchvision or timm model, got {name!r}")
    if weights not in (None, "DEFAULT"):
        raise ValueError(f"weights must be a file or 'DEFAULT' for the timm model {name}, got {weights!r}")
    timm_network: nn.Module = timm.create_model(name, pretrained=weights is not None)
    return timm_network
