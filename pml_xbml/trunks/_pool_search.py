"""Finds by measurement where a network that no table knows averages its local features."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._evaluation import evaluation
from ._known_pools import Ending, replace_module

# Fully convolutional networks take any size; others are nearly always made for one of these. They ascend,
# because a pool of a fixed size, such as AvgPool2d(7), refuses smaller feature maps and is global on the
# first that it takes.
_IMAGE_SIZES = (28, 32, 64, 96, 128, 224, 256, 299, 331)
_ERRORS_OF_A_RUN = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


@dataclass
class _Call:
    """One run of a module, and where in the order of the network's run it starts and ends."""

    name: str
    start: int
    end: int = -1
    input_shape: tuple[int, ...] = ()
    averages: bool = False


def search_ending(network: nn.Module, pool: str | None = None) -> Ending:
    """Runs a network on noise and watches which module averages its local features, and what runs afterwards.

    A candidate counts only if, with everything after it dropped, the network returns exactly what the
    candidate gives. This rules out the averages of squeeze-and-excitation blocks, and networks that treat the
    average by function calls, which cannot be dropped.

    Args:
        network: any network from images (B, channels, H, W) to one tensor.
        pool: dotted name of the module to take for the average; None to find it.

    Returns:
        The network's ending. A network that returns feature maps or tokens ends in them.

    Raises:
        ValueError: there is no such module, it is not at the end of the network, or without a name no module
            can be told to be the average; the message names the candidates.
    """
    if pool is not None:
        _check_name(network, pool)
    candidates: dict[str, None] = {}
    errors = []
    with evaluation(network), torch.random.fork_rng(devices=[]):
        for channels, size in itertools.product(_channels_of_images(network), _IMAGE_SIZES):
            images = _noise_images(network, channels, size)
            try:
                calls, output = _watched_run(network, images)
            except _ERRORS_OF_A_RUN as error:
                errors.append(f"{tuple(images.shape)}: {error}")
                continue
            if pool is not None:
                return _named_ending(network, pool, calls, images)
            if _are_features(network, output):
                return Ending(output.shape[1] if output.dim() == 4 else output.shape[2])
            averages = dict.fromkeys(call.name for call in reversed(calls) if call.averages)
            for name in averages:
                ending = _ending_at(name, calls)
                if _returns_the_pool(network, ending, images):
                    return ending
            candidates |= averages
    raise ValueError(
        f"cannot tell where the trunk ({type(network).__name__}) averages its local features: "
        f"{_described_candidates(network, list(candidates), errors)}. Give the dotted name of its last pool "
        "as `pool`, or wrap the part of the network that returns feature maps (B, C, H, W) or tokens "
        "(B, N, C)"
    )


def _check_name(network: nn.Module, pool: str) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if pool not in names:
        close = difflib.get_close_matches(pool, names, n=5) or _pool_like_modules(network)
        raise ValueError(
            f"pool={pool!r} is not a module of the trunk ({type(network).__name__}); candidates are {close}"
        )


def _pool_like_modules(network: nn.Module) -> list[str]:
    described = [(name, f"{name} ({type(module).__name__})") for name, module in network.named_modules()]
    return [text for name, text in described if name and "pool" in text.lower()]


def _are_features(network: nn.Module, output: Any) -> bool:
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the trunk ({type(network).__name__}) must return one tensor, got {type(output).__name__}; "
            "wrap the part of it that returns feature maps (B, C, H, W) or tokens (B, N, C)"
        )
    return output.dim() == 3 or (output.dim() == 4 and output.shape[2:].numel() > 1)


def _described_candidates(network: nn.Module, averages: list[str], errors: list[str]) -> str:
    if averages:
        return f"the candidates {averages} average feature maps, but what follows them cannot be dropped"
    named = _pool_like_modules(network)
    reason = "no module gave the average of its input"
    if len(errors) == len(_IMAGE_SIZES) * len(_channels_of_images(network)):
        reason = f"it takes images of none of the sizes {_IMAGE_SIZES}, e.g. {errors[0]}"
    return f"{reason}; candidates by name are {named or 'none'}"


def _named_ending(network: nn.Module, pool: str, calls: list[_Call], images: torch.Tensor) -> Ending:
    shapes = [call.input_shape for call in calls if call.name == pool]
    if not shapes:
        raise ValueError(f"pool={pool!r} does not run when the trunk ({type(network).__name__}) does")
    if len(shapes[-1]) not in (3, 4):
        raise ValueError(
            f"pool={pool!r} gets an input of shape {shapes[-1]}; "
            "a pool gets feature maps (B, C, H, W) or tokens (B, N, C)"
        )
    ending = _ending_at(pool, calls)
    if not _returns_the_pool(network, ending, images):
        raise ValueError(
            f"the trunk ({type(network).__name__}) does not return what pool={pool!r} gives, even without "
            f"the modules that follow it ({list(ending.followers)}): name its last pool, or wrap the part of "
            "the network in front of it"
        )
    return ending


def _channels_of_images(network: nn.Module) -> list[int]:
    """Colour or grey, if a convolution takes that; else what the first convolution takes."""
    channels = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    return list(dict.fromkeys([*(c for c in (3, 1) if c in channels), *channels[:1]])) or [3]


def _noise_images(network: nn.Module, channels: int, size: int) -> torch.Tensor:
    noise = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    parameter = next((p for p in network.parameters() if p.is_floating_point()), noise)
    return noise.to(parameter)


def _watched_run(network: nn.Module, images: torch.Tensor) -> tuple[list[_Call], Any]:
    calls: list[_Call] = []
    running: list[_Call] = []
    clock = itertools.count()

    def enter(name: str) -> None:
        running.append(_Call(name, start=next(clock)))
        calls.append(running[-1])

    def leave(inputs: tuple[Any, ...], output: Any) -> None:
        call = running.pop()
        call.end = next(clock)
        if inputs and isinstance(inputs[0], torch.Tensor):
            call.input_shape = tuple(inputs[0].shape)
            call.averages = isinstance(output, torch.Tensor) and _is_average(inputs[0], output)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda _module, inputs, output: leave(inputs, output)))
    try:
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def _is_average(features: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the module gave the mean over positions of feature maps, or over tokens."""
    if features.dim() not in (3, 4):
        return False
    positions = (2, 3) if features.dim() == 4 else (1,)
    if output.numel() == features.numel() or output.dim() < 2:
        return False
    average = features.mean(positions)
    if output.shape[:2] != average.shape or output.numel() != average.numel():
        return False
    return torch.allclose(output.flatten(1), average, rtol=1e-3, atol=1e-5)


def _ending_at(pool: str, calls: list[_Call]) -> Ending:
    pool_call = [call for call in calls if call.name == pool][-1]
    before = {call.name for call in calls if call.start < pool_call.end}
    after = dict.fromkeys(
        call.name for call in calls if call.start > pool_call.end and call.name not in before
    )
    outermost = tuple(name for name in after if not any(name.startswith(f"{other}.") for other in after))
    shape = pool_call.input_shape
    num_features = shape[1] if len(shape) == 4 else shape[2]
    return Ending(num_features, outermost, pool=pool)


class _Marker(nn.Module):
    """Gives numbers that no other module gives, to see whether they come out of the network unchanged."""

    def __init__(self, marks: torch.Tensor) -> None:
        super().__init__()
        self.marks = marks

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.marks.clone()


def _returns_the_pool(network: nn.Module, ending: Ending, images: torch.Tensor) -> bool:
    assert ending.pool is not None
    marks = torch.randn(len(images), ending.num_features, generator=torch.Generator().manual_seed(1)).to(
        images
    )
    replacements = {ending.pool: _Marker(marks), **{name: nn.Identity() for name in ending.followers}}
    originals = {name: network.get_submodule(name) for name in replacements}
    for name, module in replacements.items():
        replace_module(network, name, module)
    # In training mode dropout after the average shows, as a module or a function. Layers with buffers stay in
    # evaluation mode, so that no running statistic moves. The caller restores the modes.
    for module in network.modules():
        is_layer_with_buffers = not [*module.children()] and bool([*module.buffers()])
        module.training = not is_layer_with_buffers
    try:
        output = network(images)
    except _ERRORS_OF_A_RUN:
        return False
    finally:
        network.eval()
        for name, module in originals.items():
            replace_module(network, name, module)
    return isinstance(output, torch.Tensor) and torch.equal(output, marks)
