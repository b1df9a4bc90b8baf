"""The trunks of a comparison: a small one of its own, torchvision's and timm's, and a user's."""

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torchvision
from torch import nn

from .._checks import did_you_mean
from ..trunks import SmallTrunk
from .weight_file import load_weights

SMALL = "small"
_CAN_BE_IMPORTED = (
    "trunk must name a function that can be imported, as package.module:function or path/to/file.py:function"
)


def build_network(name: str, pretrained: str | None = None) -> nn.Module:
    """Builds a backbone by name.

    Args:
        name: "small"; a model of torchvision or (when it is installed) of timm; or a function without
            arguments that returns the network, "package.module:function" or "path/to/file.py:function". The
            network averages feature maps or tokens, or gives them.
        pretrained: None for random weights; a file with a state dict; or a name that the library knows:
            torchvision's, such as "IMAGENET1K_V2", or "DEFAULT", which timm's pretrained weights go by too.

    Returns:
        The network, as its library builds it.

    Raises:
        ValueError: if no library knows the name, there is no such function, it fails or returns no network,
            or there are no such weights, they do not fit, or cannot be downloaded.
    """
    from_file = pretrained is not None and Path(pretrained).is_file()
    network = _build(name, None if from_file else pretrained)
    if from_file:
        load_weights(network, str(pretrained), name)
    return network


def _build(name: str, pretrained: str | None) -> nn.Module:
    if ":" in name:
        if pretrained is not None:
            raise ValueError(
                f"pretrained must be a file with a state dict for the network of {name}, got {pretrained!r}, "
                "which is no file; or let the function load its weights"
            )
        return _call(name)
    if name == SMALL:
        if pretrained is not None:
            raise ValueError(
                f"pretrained must be a file with a state dict for the trunk 'small', got {pretrained!r}, "
                "which is no file; leave it out for random weights"
            )
        return SmallTrunk()
    if name in torchvision.models.list_models(module=torchvision.models):
        known = [member.name for member in torchvision.models.get_model_weights(name)]
        if pretrained is not None and pretrained not in ("DEFAULT", *known):
            raise ValueError(
                f"pretrained must be a file, 'DEFAULT' or one of {known} for {name}, got {pretrained!r}"
            )
        return _made_by(partial(torchvision.models.get_model, name, weights=pretrained), name, pretrained)
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(
            f"trunk must be 'small' or the name of a torchvision model, got {name!r}; "
            "timm's models are known too once timm is installed"
        ) from None
    if not timm.is_model(name):
        raise ValueError(
            "trunk must be 'small', the name of a torchvision or timm model, or a function as "
            f"package.module:function or path/to/file.py:function, got {name!r}"
            f"{did_you_mean(name, [*torchvision.models.list_models(), *timm.list_models()])}"
        )
    if pretrained not in (None, "DEFAULT"):
        raise ValueError(
            f"pretrained must be a file or 'DEFAULT' for the timm model {name}, got {pretrained!r}"
        )
    if pretrained is not None and not timm.models.is_model_pretrained(name):
        raise ValueError(
            f"pretrained must be a file for the timm model {name}, of which timm has no pretrained weights, "
            f"got {pretrained!r}"
        )
    return _made_by(partial(timm.create_model, name, pretrained=pretrained is not None), name, pretrained)


def _made_by(make: Callable[[], Any], name: str, pretrained: str | None) -> nn.Module:
    """A network of a library, whose download may fail in whatever way."""
    try:
        with _quiet_downloads():
            network: nn.Module = make()
    except Exception as error:
        if pretrained is None:
            raise ValueError(
                f"trunk must be a network that can be built without arguments, got {name!r}: {error}"
            ) from error
        raise ValueError(
            f"pretrained must be weights that can be downloaded, got {pretrained!r} for {name}: {error}; "
            "give a file with its state dict"
        ) from error
    return network


@contextlib.contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Without the warnings of huggingface_hub's retries: the error that ends them says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _call(name: str) -> nn.Module:
    """The network of the function ``module:function`` or ``file.py:function``."""
    place, _, function = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        make = getattr(module, function)
    except (Exception, SystemExit) as error:  # a file of the user's may raise anything
        raise ValueError(f"{_CAN_BE_IMPORTED}, got {name!r}: {_in_words(error)}") from error
    try:
        network = make()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"trunk must name a function that returns a torch.nn.Module when it is called without arguments, "
            f"got {name!r}, which raises {_in_words(error)}"
        ) from error
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


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
