"""What can be checked of a comparison without training, before it leaves anything behind."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..samplers import DisjointClassPairSampler
from ..trunks import PrototypePoolingTrunk
from ..trunks.prototype_pooling import as_local_features
from .class_subset import ClassSubset
from .frozen_stages import FrozenStages
from .loss_table import LOSSES
from .models import build_models, cross_batch_loss, keep_norms
from .networks import build_network
from .run_config import RunConfig
from .splits import Splits

_TRIED_IMAGES = 4


def check_trainable(runs: Sequence[RunConfig], splits: Splits[ClassSubset]) -> None:
    """Makes once what the runs will train with, and tries it: what raises here has cost no training.

    The networks of the trial are thrown away.

    Args:
        runs: of one seed.
        splits: their data.

    Raises:
        ValueError: if the sampler cannot make batches of the training classes, or network, loss or frozen
            stages cannot be built, or the network cannot be trained on the images.
    """
    settings = runs[0]
    _check_batches(settings, len(splits.train.classes))
    DisjointClassPairSampler(
        splits.train.labels,
        m=settings.samples_per_class,
        batch_size=settings.batch_size,
        length_before_new_iter=settings.batch_size,
    )
    _check_network(settings)
    side = image_side(splits)
    tried = next(run for run in reversed(runs) if run.arm in ("xml", "plain"))
    trunk, embedder = build_models(tried, torch.device("cpu"))
    for run in runs:
        loss = LOSSES[run.loss].build(len(splits.train.classes), run.embedding_size)
        if run.arm == "xml":
            assert isinstance(trunk, PrototypePoolingTrunk)
            cross_batch_loss(run, loss, trunk)
    images = torch.randn(_TRIED_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    # Before the cut, which changes the trunk.
    _check_prototypes(tried, trunk, images, len(splits.train))
    inputs = images
    if tried.freeze is not None:
        stages = FrozenStages(trunk, tried.freeze, side)
        inputs = stages.compute(images).half().float()
        if not inputs.isfinite().all():
            raise ValueError(
                f"freeze must name a module whose activations are finite in half precision, got "
                f"{tried.freeze!r}, where those of {stages.name!r} are not; freeze less, or train all of it"
            )
    keep_norms(tried, trunk)
    _check_outputs(tried, trunk.eval(), embedder, inputs, side)
    _check_outputs(tried, trunk.train(), embedder, inputs, side)


def image_side(splits: Splits[ClassSubset]) -> int:
    """The side of the transformed images, in pixels.

    Raises:
        ValueError: if no validation image can be read.
    """
    for index in range(len(splits.val)):
        try:
            side: int = splits.val[index][0].shape[-1]
        except (OSError, SyntaxError, ValueError):
            continue  # check_images names it
        return side
    raise ValueError("dataset must hold images that can be read, got none among those for validation")


def _check_batches(settings: RunConfig, num_classes: int) -> None:
    """As the sampler does, with the settings' names."""
    batch_size, in_a_class = settings.batch_size, settings.samples_per_class
    if batch_size % (2 * in_a_class):
        raise ValueError(
            f"batch_size must be a multiple of 2 * samples_per_class = {2 * in_a_class}, so that both "
            f"halves hold {in_a_class} images of each of their classes, got {batch_size}"
        )
    if batch_size // in_a_class > num_classes:
        raise ValueError(
            f"batch_size must be at most samples_per_class * training classes = {in_a_class} * {num_classes} "
            f"= {in_a_class * num_classes}, got {batch_size}; lower it, or take more samples_per_class"
        )


def _check_network(settings: RunConfig) -> None:
    network = build_network(settings.trunk, settings.pretrained)
    if ":" in settings.trunk:
        # A network that is handed out twice would go into a run as an earlier one has trained it.
        known = {id(module) for module in network.modules()} | {id(weight) for weight in network.parameters()}
        again = build_network(settings.trunk, settings.pretrained)
        if any(id(part) in known for part in (*again.modules(), *again.parameters())):
            raise ValueError(
                f"trunk must name a function that makes a new network whenever it is called, got "
                f"{settings.trunk!r}, which returns the same one"
            )
    try:
        PrototypePoolingTrunk(network)
    except ValueError as error:
        raise ValueError(
            "trunk must be a network that averages local features, or gives them, got "
            f"{settings.trunk!r}: {error}. Here that part is what a function of yours returns, as trunk "
            "package.module:function or path/to/file.py:function; `pool` is an argument of "
            "PrototypePoolingTrunk alone"
        ) from error


def _check_prototypes(run: RunConfig, trunk: torch.nn.Module, images: Tensor, num_train_images: int) -> None:
    if not isinstance(trunk, PrototypePoolingTrunk) or not run.prototype_images:
        return
    positions: list[int] = []
    handle = trunk.pooling.register_forward_pre_hook(
        lambda _, inputs: positions.append(as_local_features(inputs[0]).shape[1])
    )
    try:
        _outputs(run, trunk.eval(), images, images.shape[-1])
    finally:
        handle.remove()
    num_images = min(run.prototype_images, num_train_images)
    if trunk.pooling.num_prototypes > num_images * positions[0]:
        raise ValueError(
            f"num_prototypes must be at most {num_images * positions[0]}, the local features of {num_images} "
            f"training images of {images.shape[-1]} pixels, got {trunk.pooling.num_prototypes}"
        )


def _check_outputs(
    run: RunConfig, trunk: torch.nn.Module, embedder: torch.nn.Module, inputs: Tensor, side: int
) -> None:
    outputs = _outputs(run, trunk, inputs, side)
    try:
        embedder(outputs).square().mean().backward()
    except Exception as error:  # of a network of the user's
        raise ValueError(f"{_must_train(run, side)} {type(error).__name__}: {error}") from error
    gradients = [parameter.grad for parameter in trunk.parameters() if parameter.grad is not None]
    if not all(tensor.isfinite().all() for tensor in (outputs, *gradients)):
        raise ValueError(
            f"trunk must give finite features and gradients on images of {side} pixels, got others from "
            f"{run.trunk!r}"
        )


def _outputs(run: RunConfig, trunk: torch.nn.Module, inputs: Tensor, side: int) -> Tensor:
    try:
        outputs: Tensor = trunk(inputs)
    except Exception as error:  # of a network of the user's
        raise ValueError(f"{_must_train(run, side)} {type(error).__name__}: {error}") from error
    return outputs


def _must_train(run: RunConfig, side: int) -> str:
    return (
        f"trunk must train on images of {side} pixels, got {run.trunk!r}, which with image_size={side} raises"
    )
