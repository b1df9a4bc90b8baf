"""Where known networks average their local features, and what they do with the average.

A row for each class of torchvision and pretrainedmodels that can be known beforehand, and one rule for timm,
whose networks share their names; what is not here is measured by `pool_search`. Networks are recognised by
the names of their classes, so that none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Features = Callable[[Any, torch.Tensor], torch.Tensor]


def returned_features(network: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = network(images)
    return features


@dataclass(frozen=True)
class Ending:
    """How a network ends.

    Attributes:
        num_features: channels of the local features.
        followers: dotted names of modules that work on the average, or on what else is dropped with it; the
            network may lack some.
        pool: dotted name of the module that averages. None where a function call does, or nothing.
        features: gives what is averaged, from the network and the images, where no module averages.
        averages_itself: whether the network without ``followers`` returns the average of ``features``.
    """

    num_features: int
    followers: tuple[str, ...] = ()
    pool: str | None = None
    features: Features = returned_features
    averages_itself: bool = False


class GlobalAverage(nn.Module):
    """The plain average of feature maps (B, C, H, W) or tokens (B, N, C), as (B, C)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features.dim() == 3:
            return features.mean(1)
        return F.adaptive_avg_pool2d(features, 1).flatten(1)


_AVERAGES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, GlobalAverage)


class PooledFeatures(nn.Module):
    """A network up to its local features, which it averages by a function call or not at all, and a pool."""

    def __init__(self, network: nn.Module, features: Features, pooling: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.pooling = pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pooling(self.features(self.network, images))
        return pooled


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def existing_modules(network: nn.Module, names: Iterable[str]) -> list[str]:
    modules = dict(network.named_modules())
    return [name for name in names if name in modules]


def known_ending(network: nn.Module) -> Ending | None:
    """Look the network up.

    The library is that of the ``forward`` that runs: a subclass with one of its own is not the network of the
    table, and pretrainedmodels gives torchvision's classes a ``forward`` that pools differently. Nor is one
    whose average was replaced, by a maximum say.

    Args:
        network: any network.

    Returns:
        Its ending, or None if there is no row for it, or it does not average any more.
    """
    library = str(getattr(network.forward, "__module__", None)).partition(".")[0]
    if library == "timm" and hasattr(network, "forward_features"):
        return None if _takes_maxima(network) else _timm_ending(network)
    for base in type(network).__mro__:
        row = _ROWS.get(f"{library}.{base.__name__}")
        if row is not None:
            ending = row(network)
            averages = ending.pool is None or isinstance(network.get_submodule(ending.pool), _AVERAGES)
            return ending if averages else None
    return None


def _takes_maxima(network: nn.Module) -> bool:
    pools = [module for module in network.modules() if type(module).__name__ == "SelectAdaptivePool2d"]
    return any("max" in str(getattr(pool, "pool_type", "")) for pool in pools)


def _width(layers: nn.Module) -> int:
    """Channels that the last layer gives; the classifier, which users take off, is not asked."""
    for layer in reversed(list(layers.modules())):
        for attribute in ("out_channels", "out_features", "num_features"):
            if isinstance(getattr(layer, attribute, None), int):
                return int(getattr(layer, attribute))
        if isinstance(layer, nn.LayerNorm):
            return int(layer.normalized_shape[-1])
    raise ValueError(f"there is no layer with channels in {layers}")


def _features_attribute(network: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = network.features(images)
    return features


def _rectified_features_attribute(network: Any, images: torch.Tensor) -> torch.Tensor:
    return F.relu(_features_attribute(network, images), inplace=True)


def _mnasnet_features(network: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = network.layers(images)
    return features


def _shufflenet_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    features = images
    for stage in ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"):
        features = network.get_submodule(stage)(features)
    return features


def _torchvision_vit_tokens(network: Any, images: torch.Tensor) -> torch.Tensor:
    patches = network._process_input(images)
    class_token = network.class_token.expand(len(patches), -1, -1)
    tokens: torch.Tensor = network.encoder(torch.cat([class_token, patches], dim=1))
    return tokens[:, 1:]


def _timm_features(network: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = network.forward_features(images)
    if features.dim() == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3:
        has_class_token = getattr(network, "cls_token", None) is not None
        return features[:, getattr(network, "num_prefix_tokens", int(has_class_token)) :]
    return features


def _timm_ending(network: Any) -> Ending:
    num_features = network.num_features
    followers: tuple[str, ...] = (
        *("global_pool", "attn_pool", "fc_norm", "pre_logits", "norm_head", "flatten", "pre_classifier"),
        *("head_drop", "head", "head_dist", "aux_head", "fc", "classifier", "classif", "last_linear"),
    )
    # MobileNetV3 widens the average by a convolution, EfficientNet widens the local features by one of that
    # name. The widths in front of the average and of the classifier tell them apart.
    if getattr(network, "head_hidden_size", num_features) != num_features:
        followers = (*followers, "conv_head")
    return Ending(num_features, followers, features=_timm_features)


# Inception networks end in a concatenation, whose width is fixed by the class.
_ROWS: dict[str, Callable[[Any], Ending]] = {
    "torchvision.ResNet": lambda net: Ending(_width(net.layer4), ("fc",), pool="avgpool"),
    "torchvision.RegNet": lambda net: Ending(_width(net.trunk_output), ("fc",), pool="avgpool"),
    "torchvision.EfficientNet": lambda net: Ending(_width(net.features), ("classifier",), pool="avgpool"),
    "torchvision.MobileNetV3": lambda net: Ending(_width(net.features), ("classifier",), pool="avgpool"),
    "torchvision.ConvNeXt": lambda net: Ending(_width(net.features), ("classifier",), pool="avgpool"),
    "torchvision.SwinTransformer": lambda net: Ending(_width(net.norm), ("head",), pool="avgpool"),
    "torchvision.MaxVit": lambda net: Ending(
        _width(net.blocks), tuple(f"classifier.{i}" for i in range(1, 6)), pool="classifier.0"
    ),
    "torchvision.GoogLeNet": lambda net: Ending(1024, ("dropout", "fc", "aux1", "aux2"), pool="avgpool"),
    "torchvision.Inception3": lambda net: Ending(2048, ("dropout", "fc", "AuxLogits"), pool="avgpool"),
    "torchvision.MobileNetV2": lambda net: Ending(
        _width(net.features), ("classifier",), features=_features_attribute, averages_itself=True
    ),
    "torchvision.DenseNet": lambda net: Ending(
        _width(net.features), ("classifier",), features=_rectified_features_attribute, averages_itself=True
    ),
    "torchvision.MNASNet": lambda net: Ending(
        _width(net.layers), ("classifier",), features=_mnasnet_features, averages_itself=True
    ),
    "torchvision.ShuffleNetV2": lambda net: Ending(
        _width(net.conv5), ("fc",), features=_shufflenet_features, averages_itself=True
    ),
    "torchvision.VisionTransformer": lambda net: Ending(
        net.hidden_dim, ("heads",), features=_torchvision_vit_tokens
    ),
    "pretrainedmodels.BNInception": lambda net: Ending(1024, ("last_linear",), pool="global_pool"),
    "pretrainedmodels.DenseNet": lambda net: Ending(
        _width(net.features), ("last_linear",), features=_rectified_features_attribute
    ),
    "pretrainedmodels.DPN": lambda net: Ending(
        _width(net.features), ("last_linear",), features=_features_attribute
    ),
    "pretrainedmodels.Inception3": lambda net: Ending(
        2048, ("last_linear", "AuxLogits"), features=_features_attribute
    ),
    "pretrainedmodels.InceptionResNetV2": lambda net: Ending(
        _width(net.conv2d_7b), ("last_linear",), features=_features_attribute
    ),
    "pretrainedmodels.Xception": lambda net: Ending(
        _width(net.bn4), ("last_linear",), features=_rectified_features_attribute
    ),
}
