from torch import nn


class SmallTrunk(nn.Sequential):
    """A small convolutional network for training from scratch on a CPU.

    Takes RGB images (B, 3, H, W) and gives (B, 128), the average over a map of H/4 x W/4 local features.
    """

    def __init__(self) -> None:
        super().__init__(
            *_block(3, 16),
            nn.MaxPool2d(2),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            *_block(64, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def _block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()
