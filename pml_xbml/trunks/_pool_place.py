"""Finds where a network averages its local features in a run on images of one size.

The place is looked for in this order:

- its output, if that is feature maps (B, C, H, W) or (B, H, W, C), or tokens, without those in front that are
  no patches;
- the last module that gives the mean over all positions of its input. With this module replaced by one that
  gives known numbers, and the modules that run after it by identities, the network must return these numbers;
- the functions of :mod:`._known_pools`, for networks that average by a function call or classify by a class
  token. The first average that the network takes behind these features must be theirs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._known_pools import (
    Features,
    features_behind_returned_tokens,
    possible_features,
    returned_channels_last_features,
    returned_features,
)
from ._pool_location import GlobalAverage, PoolLocation, tried_with
from ._watched_run import Call, Reduction, Run, are_close, watched_run


class NotFoundError(ValueError):
    """The network cannot be wrapped as it is; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a network averages images of one size.

    Attributes:
        location: where.
        num_positions: that are averaged.
        is_complete: whether these are all; False for a pool with a window smaller than the feature maps.
    """

    location: PoolLocation
    num_positions: int
    is_complete: bool = True


def find_place(network: nn.Module, run: Run, images: Tensor, pool: str | None) -> Place | None:
    if pool is not None:
        return _place_of_name(network, run, images, pool)
    if not isinstance(run.output, Tensor):
        raise NotFoundError(f"it must return one tensor, got {type(run.output).__name__}")
    functions = possible_features(network)
    by_module: Iterable[Place | None] = ()
    if run.output.dim() == 3:
        functions = features_behind_returned_tokens(network)
    elif run.output.dim() == 4 and run.output.shape[2:].numel() > 1:
        is_channels_last = _are_channels_last(run.output, images)
        functions.insert(0, returned_channels_last_features if is_channels_last else returned_features)
    else:
        by_module = (_place_of_module(network, call, run, images) for call in averaging_calls(network, run))
    by_function = (_place_of_features(network, f, run, images) for f in functions)
    return next((place for place in itertools.chain(by_module, by_function) if place is not None), None)


# --- Modules that average ---


def averaging_calls(network: nn.Module, run: Run) -> list[Call]:
    """From the last to the first; of a module and those in it, the outer one first."""
    calls = {call.name: call for call in run.calls if call.name}
    averaging = (
        call
        for call in calls.values()
        if call.averages or (_has_window(network, call) and call.features is not None)
    )
    return sorted(averaging, key=lambda call: call.end, reverse=True)


def _has_window(network: nn.Module, call: Call) -> bool:
    return isinstance(network.get_submodule(call.name), nn.AvgPool2d)


def _place_of_module(network: nn.Module, call: Call, run: Run, images: Tensor) -> Place | None:
    assert call.features is not None
    if call.averages and not _averages_noise(network.get_submodule(call.name), call.features):
        return None
    location = PoolLocation(_channels(call.features), _run_after(call, run), pool=call.name)
    if not _returns_what_its_pool_gives(network, location, images):
        return None
    if call.averages and not _tried(network, location, images, call.features):
        return None
    return Place(location, _num_positions(call.features), is_complete=call.averages)


def _averages_noise(module: nn.Module, features: Tensor) -> bool:
    """So that a maximum of features that are all zero is not taken for their average."""
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
    call = Call("", 0)
    call.note(noise, _output(module, noise))
    return call.averages


def _run_after(pool: Call, run: Run) -> tuple[str, ...]:
    before = {call.name for call in run.calls if call.start < pool.end}
    after = dict.fromkeys(
        call.name for call in run.calls if call.start > pool.end and call.name not in before
    )
    return outermost(after)


class _Marker(nn.Module):
    """Gives numbers that no other module gives, to see whether they come out of the network unchanged."""

    def __init__(self, marks: Tensor) -> None:
        super().__init__()
        self.marks = marks

    def forward(self, features: Tensor) -> Tensor:
        return self.marks.clone()


def _returns_what_its_pool_gives(network: nn.Module, location: PoolLocation, images: Tensor) -> bool:
    marks = torch.randn(len(images), location.num_features, generator=torch.Generator().manual_seed(1))
    marks = marks.to(images)
    with tried_with(network, location, _Marker(marks)) as trunk:
        output = _output_in_training(trunk, images)
    return isinstance(output, Tensor) and torch.equal(output, marks)


def _place_of_name(network: nn.Module, run: Run, images: Tensor, pool: str) -> Place:
    calls = [call for call in run.calls if call.name == pool]
    described = f"pool={pool!r} of the trunk ({type(network).__name__})"
    if not calls:
        raise ValueError(f"{described} must run when the trunk does, got a module that does not")
    shape = calls[-1].input_shape
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{described} must get feature maps (B, C, H, W) or tokens (B, N, C), got an input of shape "
            f"{shape}"
        )
    num_features = shape[1] if len(shape) == 4 else shape[2]
    location = PoolLocation(num_features, _run_after(calls[-1], run), pool=pool)
    if not _returns_what_its_pool_gives(network, location, images):
        raise ValueError(
            f"{described} must be its last pool, got one whose output the trunk does not return, even "
            f"without the modules that run after it ({list(location.head_modules)}): name the last pool, or "
            "wrap the part of the network in front of it"
        )
    return Place(location, math.prod(shape) // (shape[0] * num_features))


# --- Features that a function averages, or nothing does ---


def _place_of_features(network: nn.Module, features: Features, run: Run, images: Tensor) -> Place | None:
    try:
        partial = watched_run(network, lambda: features(network, images))
    except Exception:  # whatever a function that is made for another network meets
        return None
    local = partial.output
    if not isinstance(local, Tensor) or local.dim() not in (3, 4) or not _are_positions(local, images):
        return None
    location = PoolLocation(_channels(local), _run_behind(partial, run), features=features)
    behind = run.reductions[len(partial.reductions) :]
    if not location.is_output and not _are_averaged_next(network, local, location, behind, run):
        return None
    if not _tried(network, location, images, local):
        return None
    return Place(location, _num_positions(local), is_complete=not behind or behind[0].is_complete)


def _are_channels_last(maps: Tensor, images: Tensor) -> bool:
    """Whether maps are (B, H, W, C), by which two of their sizes are in the ratio of the images' sides."""
    first, second, third = maps.shape[1:]
    ratio = images.shape[3] / images.shape[2]

    def is_grid(height: int, width: int) -> bool:
        return abs(width - ratio * height) < ratio

    return is_grid(first, second) and not is_grid(second, third)


def _are_positions(features: Tensor, images: Tensor) -> bool:
    """Whether features are more than one, and as many as a grid over the images has."""
    if _num_positions(features) < 2:
        return False
    if features.dim() == 4:
        return True
    height, width = sorted(images.shape[2:])
    num_tokens = features.shape[1] * height // width
    return features.shape[1] * height % width == 0 and math.isqrt(num_tokens) ** 2 == num_tokens


def _run_behind(partial: Run, run: Run) -> tuple[str, ...]:
    """The modules that run with the network, but not with the part of it that gives the features."""
    before = {call.name for call in partial.calls}
    after = dict.fromkeys(
        call.name
        for call in run.calls
        if call.name not in before and not any(name.startswith(f"{call.name}.") for name in before)
    )
    after.pop("", None)
    return outermost(after)


def _are_averaged_next(
    network: nn.Module, features: Tensor, location: PoolLocation, behind: list[Reduction], run: Run
) -> bool:
    """Whether the network averages these features, all of them, and nothing else comes in between.

    Tokens need not be averaged at all: vision transformers that classify by a class token have patch tokens
    too.

    Args:
        behind: the reductions that ran behind the features.
    """
    if any(not reduction.is_average for reduction in behind):
        return False
    if not behind:
        return features.dim() == 3
    between = (
        network.get_submodule(call.name)
        for call in run.calls
        if _is_in(call.name, location.head_modules) and call.end < behind[0].time
    )
    # A norm in between that has not been trained yet changes nothing, but will.
    if any(True for module in between for _ in module.parameters(recurse=False)):
        return False
    return not behind[0].is_complete or are_close(behind[0].output, GlobalAverage()(features))


def returns_average_itself(network: nn.Module, location: PoolLocation, images: Tensor) -> bool:
    """Whether the network without its head returns the average of its local features by itself."""
    if location.pool is not None or location.is_output:
        return False
    average = GlobalAverage()(location.features(network, images))
    with tried_with(network, location, GlobalAverage()):
        output = _output(network, images)
        if not isinstance(output, Tensor) or not torch.equal(output, average):
            return False
        in_training = _output_in_training(network, images)
    return isinstance(in_training, Tensor) and in_training.shape == average.shape


# --- Trying ---


def _tried(network: nn.Module, location: PoolLocation, images: Tensor, features: Tensor) -> bool:
    """Whether the network with a plain average at the location gives that of the features."""
    with tried_with(network, location, GlobalAverage()) as trunk:
        in_training = _output_in_training(trunk, images)
        output = _output(trunk, images)
    shape = (len(images), location.num_features)
    if not all(isinstance(value, Tensor) and value.shape == shape for value in (in_training, output)):
        return False
    return are_close(output, GlobalAverage()(features))


def _output(network: nn.Module, images: Tensor) -> Any:
    try:
        return network(images)
    except Exception:  # whatever a network meets without its head
        return None


def _output_in_training(network: nn.Module, images: Tensor) -> Any:
    """In training mode dropout after the average shows, as a module or a function, and so do other outputs.

    Layers with buffers stay in evaluation mode, so that no running statistic moves.
    """
    for module in network.modules():
        is_layer = isinstance(module, nn.modules.batchnorm._NormBase) or not [*module.children()]
        has_buffers = any(True for _ in module.buffers(recurse=False))
        module.training = not (is_layer and has_buffers)
    try:
        return _output(network, images)
    finally:
        network.eval()


# --- Tensors and names ---


def _channels(features: Tensor) -> int:
    return features.shape[1 if features.dim() == 4 else 2]


def _num_positions(features: Tensor) -> int:
    return features.shape[2:].numel() if features.dim() == 4 else features.shape[1]


def outermost(names: dict[str, None]) -> tuple[str, ...]:
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _is_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
