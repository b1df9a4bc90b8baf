"""The trunks of a comparison: a small one of its own, torchvision's and timm's."""

from pathlib import Path

import torch
import torchvision
from torch import nn

from ..trunks import SmallTrunk

SMALL = "small"


def build_network(name: str, weights: str | None = None) -> nn.Module:
    """Build a backbone by name.

    Args:
        name: "small", or a model of torchvision or (when it is installed) of timm.
        weights: None for random weights; a file with a state dict; or a name that the library knows:
            torchvision's, such as "IMAGENET1K_V2", or "DEFAULT", which timm's pretrained weights go by too.

    Returns:
        The network, as its library builds it.

    Raises:
        ValueError: if no library knows the name, or there are no such weights for it.
    """
    from_file = weights is not None and Path(weights).is_file()
    named_weights = None if from_file else weights
    network = _build(name, named_weights)
    if from_file:
        network.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    return network


def _build(name: str, weights: str | None) -> nn.Module:
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
