"""How known networks give the local features that they average by a function call, or not at all.

Most networks average by a module, which is found by running them. The functions here are for the others.
Whether one fits a network is measured too (see :mod:`._pool_search`), so none has to know versions, classes
or options of torchvision, timm and pretrainedmodels, and none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Features = Callable[[Any, Tensor], Tensor]
"""From a network and images (B, channels, H, W) to feature maps (B, C, H, W) or tokens (B, N, C)."""


def returned_features(network: Any, images: Tensor) -> Tensor:
    """The output of a network that returns feature maps (B, C, H, W) or tokens (B, N, C)."""
    features: Tensor = network(images)
    return features


def returned_channels_last_features(network: Any, images: Tensor) -> Tensor:
    """The output of a network that returns feature maps (B, H, W, C), as some transformers do."""
    return returned_features(network, images).permute(0, 3, 1, 2)


def returned_tokens(network: Any, images: Tensor) -> Tensor:
    """The output of a network that says that it has prefix tokens, but returns the patch tokens alone."""
    return returned_features(network, images)


def returned_patch_tokens(network: Any, images: Tensor) -> Tensor:
    """The output of a network that returns tokens, without the prefix tokens that it says to have."""
    return returned_features(network, images)[:, num_prefix_tokens(network) :]


def timm_features(network: Any, images: Tensor) -> Tensor:
    """timm's ``forward_features``, as (B, C, H, W) or without class, distillation and register tokens."""
    features: Tensor = network.forward_features(images)
    if features.dim() == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3:
        return features[:, num_prefix_tokens(network) :]
    return features


def num_prefix_tokens(network: Any) -> int:
    """How many tokens in front of the patches a network says it has."""
    said = getattr(network, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    return sum(getattr(network, name, None) is not None for name in ("cls_token", "dist_token"))


def num_prefix_tokens_within(network: torch.nn.Module) -> int:
    """:func:`num_prefix_tokens` of a network, or where it says nothing, of what is in it."""
    own = num_prefix_tokens(network)
    if own or isinstance(getattr(network, "num_prefix_tokens", None), int):
        return own
    return max(map(num_prefix_tokens_within, network.children()), default=0)


def features_attribute(network: Any, images: Tensor) -> Tensor:
    """``features`` of torchvision's MobileNetV2 and of pretrainedmodels."""
    features: Tensor = network.features(images)
    return features


def rectified_features_attribute(network: Any, images: Tensor) -> Tensor:
    """``features`` and a ReLU: the DenseNets, and Xception of pretrainedmodels."""
    return F.relu(features_attribute(network, images), inplace=True)


def mnasnet_features(network: Any, images: Tensor) -> Tensor:
    """torchvision's MNASNet."""
    features: Tensor = network.layers(images)
    return features


def shufflenet_features(network: Any, images: Tensor) -> Tensor:
    """torchvision's ShuffleNetV2."""
    features = images
    for stage in ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"):
        features = network.get_submodule(stage)(features)
    return features


def torchvision_vit_tokens(network: Any, images: Tensor) -> Tensor:
    """The patch tokens behind the last norm of torchvision's VisionTransformer."""
    patches = network._process_input(images)
    class_token = network.class_token.expand(len(patches), -1, -1)
    tokens: Tensor = network.encoder(torch.cat([class_token, patches], dim=1))
    return tokens[:, 1:]


_NEEDED_ATTRIBUTES: dict[Features, tuple[str, ...]] = {
    timm_features: ("forward_features",),
    features_attribute: ("features",),
    rectified_features_attribute: ("features",),
    mnasnet_features: ("layers",),
    shufflenet_features: ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    torchvision_vit_tokens: ("_process_input", "class_token", "encoder"),
}


RETURNED = (returned_features, returned_channels_last_features, returned_tokens, returned_patch_tokens)
"""The functions that give what the network returns."""


def features_behind_returned_tokens(network: torch.nn.Module) -> list[Features]:
    """The functions that may fit a network that returns tokens, the likeliest first.

    Where there are prefix tokens, the tokens that are returned may be a grid with them or without. Of the
    patch tokens of timm's ``forward_features`` it is known which they are; of others it shows with images of
    another size, and only the network's own word tells that they stand in front.
    """
    functions = possible_features(network)
    if not num_prefix_tokens_within(network):
        return [returned_features, *functions]
    known = [timm_features] if timm_features in functions and num_prefix_tokens(network) else []
    has_number = isinstance(getattr(network, "num_prefix_tokens", None), int)
    returned = [returned_tokens, *([returned_patch_tokens] if has_number else [])]
    return [*known, *returned, *(features for features in functions if features not in known)]


def possible_features(network: torch.nn.Module) -> list[Features]:
    """The functions above that may fit a network, by the names of its attributes."""
    return [
        features
        for features, names in _NEEDED_ATTRIBUTES.items()
        if all(hasattr(network, name) for name in names)
    ]
