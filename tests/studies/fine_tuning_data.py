"""What the study trains on: glyphs, or activations of the frozen stages of a pretrained network."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pml_xbml.comparison.splits import load_splits, split_classes

NUM_FROZEN_STAGES, NUM_COPIES, IMAGE_SIZE = 6, 6, 128


@dataclass(frozen=True)
class Data:
    """Glyphs, or activations of frozen stages: (N, copies, C, H, W) to train, (N, C, H, W) to evaluate."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    test: Tensor
    test_labels: Tensor


def backbone(pretrained: str | None) -> tuple[nn.Module, nn.Module]:
    """The frozen stages and the trained ones, which give feature maps."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    if pretrained is not None:
        network.load_state_dict(torch.load(pretrained, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    frozen = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:NUM_FROZEN_STAGES])
    trained = nn.Sequential(*network.blocks[NUM_FROZEN_STAGES:], network.conv_head, network.bn2)
    return frozen.requires_grad_(False), trained


@torch.no_grad()
def compute_activations(folder: str, pretrained: str | None) -> Data:
    """Of the photographs of a folder with a folder a class."""
    frozen, _ = backbone(pretrained)
    to_tensor = [
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=(0.16, 1)),
            transforms.RandomHorizontalFlip(),
            *to_tensor,
        ]
    )
    center = transforms.Compose(
        [transforms.Resize(IMAGE_SIZE * 256 // 224), transforms.CenterCrop(IMAGE_SIZE), *to_tensor]
    )
    images = ImageFolder(folder)
    num_classes = len(images.classes)
    test, pool = split_classes(range(num_classes), num_classes // 2)
    train, val = split_classes(pool, len(pool) * 3 // 4)
    classes = {"train": train, "val": val, "test": test}
    torch.manual_seed(0)
    rows: dict[str, list[Tensor]] = {split: [] for split in classes}
    labels: dict[str, list[int]] = {split: [] for split in classes}
    for path, label in images.samples:
        (split,) = (split for split, members in classes.items() if label in members)
        image = Image.open(path).convert("RGB")
        views = [augment(image) for _ in range(NUM_COPIES)] if split == "train" else [center(image)]
        activations = frozen(torch.stack(views).to(memory_format=torch.channels_last)).half()
        rows[split].append(activations if split == "train" else activations[0])
        labels[split].append(classes[split].index(label))
    return Data(
        **{split: torch.stack(rows[split]) for split in classes},
        **{f"{split}_labels": torch.tensor(labels[split]) for split in classes},
    )


def load_glyphs() -> Data:
    splits = load_splits("glyphs", train_classes=64)
    tensors = {}
    for name, subset in (("train", splits.train), ("val", splits.val), ("test", splits.test["test"])):
        images, labels = zip(*(subset[index] for index in range(len(subset))), strict=True)
        tensors[name] = torch.stack(images)
        tensors[f"{name}_labels"] = torch.tensor([int(label) for label in labels])
    tensors["train"] = tensors["train"].unsqueeze(1)
    return Data(**tensors)
