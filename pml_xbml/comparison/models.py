"""What a run trains: trunk, embedder, loss, optimizers, built from its settings."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses

from ..losses import CrossBatchPrototypeLoss
from ..trunks import PrototypePoolingTrunk
from .class_subset import ClassSubset
from .control_loss import ControlLoss
from .feature_cache import cache_path, cached_splits
from .frozen_stages import FrozenStages, freeze_norms
from .loss_table import LOSSES
from .networks import build_network
from .run_config import RunConfig
from .splits import Splits, load_splits

#: Makes the loss of an XML run from the run, the loss by itself and the wrapped trunk.
MakeLoss = Callable[[RunConfig, losses.BaseMetricLossFunction, PrototypePoolingTrunk], torch.nn.Module]


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  PML's losses and miners draw from the global generator
    torch.manual_seed(seed)


def splits_of(config: RunConfig) -> Splits[ClassSubset]:
    """The images of a run."""
    return load_splits(config.dataset, config.root, config.train_classes, config.image_size)


def build_models(config: RunConfig, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Trunk and embedder, with the same weights for all arms; an untouched trunk has no embedder.

    The prototypes are drawn from a generator of their own.
    """
    seed_everything(config.seed)
    pooling_options = {"collect_stats": True, **config.pooling_options}
    wrapped = PrototypePoolingTrunk(build_network(config.trunk, config.pretrained), **pooling_options)
    embedder: torch.nn.Module = torch.nn.Linear(wrapped.num_features, config.embedding_size)
    if config.arm == "untouched":
        embedder = torch.nn.Identity()
    trunk = wrapped if config.arm == "xml" else wrapped.unwrap()
    if device.type == "cpu":
        # There convolutions and poolings take less time so, those of small and mobile networks most.
        trunk.to(memory_format=torch.channels_last)
    return trunk.to(device), embedder.to(device)


def use_frozen_stages(
    config: RunConfig, trunk: torch.nn.Module, splits: Splits[ClassSubset], cache_folder: Path
) -> Splits[Any]:
    """Cuts the trunk as the run says, and puts activations in place of the images.

    Args:
        config: the run.
        trunk: from :func:`build_models`; it is cut in place.
        splits: the images.
        cache_folder: of the activations, which are computed if they are not there.

    Returns:
        The splits that the trunk takes; the same ones if nothing is frozen.
    """
    if config.freeze is None:
        return splits
    image, _ = splits.val[0]
    stages = FrozenStages(trunk, config.freeze, image.shape[-1])
    return cached_splits(stages, splits, config.copies, cache_folder)


def cache_of(config: RunConfig, cache_folder: Path) -> Path:
    """The folder of the activations that a run with frozen stages reads."""
    splits = splits_of(config)
    trunk, _ = build_models(config, torch.device("cpu"))
    assert config.freeze is not None
    stages = FrozenStages(trunk, config.freeze, splits.val[0][0].shape[-1])
    return cache_path(stages, splits, config.copies, cache_folder)


def cross_batch_loss(
    config: RunConfig, loss: losses.BaseMetricLossFunction, trunk: PrototypePoolingTrunk
) -> CrossBatchPrototypeLoss:
    """The XML loss of a run, as its settings have it."""
    options = {"cross_batch_weight": config.cross_batch_weight, "collect_stats": True, **config.loss_options}
    return CrossBatchPrototypeLoss(loss, pooling=trunk, **options)


def build_loss(
    config: RunConfig, trunk: torch.nn.Module, train: Any, make_loss: MakeLoss
) -> tuple[torch.nn.Module, float | None]:
    """The loss of a run, and the cover radius of its prototypes where training images choose them."""
    loss = LOSSES[config.loss].build(len(train.classes), config.embedding_size)
    if config.arm == "control":
        assert config.cross_batch_weight is not None
        return ControlLoss(loss, config.cross_batch_weight), None
    if not isinstance(trunk, PrototypePoolingTrunk):
        return loss, None
    cover_radius = None
    if config.prototype_images:
        chosen = np.random.default_rng(config.seed).permutation(len(train))[: config.prototype_images]
        cover_radius = trunk.init_prototypes(torch.stack([train[int(index)][0] for index in chosen]))
    return make_loss(config, loss, trunk), cover_radius


def keep_norms(config: RunConfig, trunk: torch.nn.Module) -> None:
    """Freezes the normalization layers if the run says so."""
    if config.freezes_norms:
        freeze_norms(trunk)


def build_optimizers(
    config: RunConfig, models: dict[str, torch.nn.Module], loss: torch.nn.Module
) -> dict[str, torch.optim.Optimizer]:
    """Adam for trunk and prototypes, embedder, and what the loss learns."""
    trunk = models["trunk"]
    prototypes = [trunk.prototypes] if isinstance(trunk, PrototypePoolingTrunk) else []
    backbone = [
        parameter
        for parameter in trunk.parameters()
        if parameter.requires_grad and all(parameter is not prototype for prototype in prototypes)
    ]
    groups: list[dict[str, Any]] = [
        {"params": backbone},
        {"params": prototypes, "lr": config.prototypes_learning_rate},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "trunk_optimizer": torch.optim.Adam(groups, lr=config.trunk_learning_rate),
        "embedder_optimizer": torch.optim.Adam(
            models["embedder"].parameters(), lr=config.embedder_learning_rate
        ),
    }
    loss_learning_rate = LOSSES[config.loss].learning_rate
    if loss_learning_rate is not None:
        optimizers["metric_loss_optimizer"] = torch.optim.Adam(loss.parameters(), lr=loss_learning_rate)
    return optimizers


def build_schedulers(
    config: RunConfig, optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, torch.optim.lr_scheduler.LRScheduler]:
    """A schedule for each optimizer, by the names that PML's trainers know."""
    if config.schedule == "constant":
        return {}
    return {
        name.replace("_optimizer", "_scheduler_by_iteration"): torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=config.iterations
        )
        for name, optimizer in optimizers.items()
    }
