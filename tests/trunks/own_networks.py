"""Small networks that average in ways of their own."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.resnet import ResNet

NUM_PROTOTYPES = 4


def convolutions() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
    ]


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * self.gate(self.pool(maps)).sigmoid()


class Headed(nn.Module):
    """A network with its modules registered out of order, and a head of several layers."""

    def __init__(self, treat: Callable[[torch.Tensor], torch.Tensor] = lambda average: average) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.excitation = SqueezeExcitation(12)
        self.body = nn.Sequential(*convolutions())
        self.treat = treat

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        average = self.average(self.excitation(self.body(images)))
        return self.head(self.treat(average.flatten(1)))


class PooledByFunction(Headed):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.excitation(self.body(images)).mean((2, 3)))


class Tokens(nn.Module):
    """A network that returns tokens (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolutions())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).flatten(2).transpose(1, 2)


class WithPrefixTokens(Tokens):
    """A network that returns patch tokens behind prefix tokens, or without them, and says how many those are.

    It takes images of one size alone, as most vision transformers do, unless ``image_size`` is None.
    """

    def __init__(
        self, num_prefix_tokens: int, image_size: int | None = 16, leaves_them_out: bool = False
    ) -> None:
        super().__init__()
        self.num_prefix_tokens, self.image_size = num_prefix_tokens, image_size
        self.leaves_them_out = leaves_them_out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.image_size not in (None, images.shape[2]):
            raise ValueError(f"images must measure {self.image_size}")
        patches = super().forward(images)
        if self.leaves_them_out:
            return patches
        prefix = 10 + torch.ones(len(patches), self.num_prefix_tokens, 12).to(patches)
        return torch.cat([prefix, patches], dim=1)


class ChannelsLast(Tokens):
    """A network that returns feature maps (B, H, W, C)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).permute(0, 2, 3, 1)


class FlattenedMaps(Tokens):
    """A network that returns maps (B, C, H · W), which could be taken for tokens where C is a square."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.body(images).flatten(2)
        return torch.cat([maps, maps[:, :4]], dim=1)


class ReturningDictionary(Tokens):
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.body(images)}


class ResNetWithOwnForward(ResNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return self.avgpool(features).flatten(1)


def own_sequential() -> nn.Sequential:
    return nn.Sequential(
        *convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, 4)
    )
