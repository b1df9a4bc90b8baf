"""Finds where a network averages its local features, by running it on noise of several sizes.

A place (see :mod:`._pool_place`) counts if it holds at two sizes with different numbers of positions, or at
the only size that the network takes. At a small size an earlier pool may turn 2 × 2 positions into one; at a
larger size it does not. What was found is confirmed with images that are no square.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .._evaluation import evaluation
from ._known_pools import num_prefix_tokens_within, returned_tokens
from ._libraries import classifier_in_front
from ._pool_location import PoolLocation
from ._pool_place import (
    NotFoundError,
    Place,
    averaging_calls,
    find_place,
    outermost,
    returns_average_itself,
)
from ._watched_run import Run, watched_run

# Fully convolutional networks take any size; others are nearly always made for one of these.
_IMAGE_SIZES = (28, 32, 64, 96, 128, 160, 192, 224, 240, 256, 299, 331, 384, 448, 512)


@dataclass
class _Seen:
    """What the runs showed, for the message of an error."""

    errors: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    num_runs: int = 0


def find_global_pool(network: nn.Module, pool: str | None = None) -> PoolLocation:
    """Finds where a network averages its local features for the last time.

    The network is left as it was, its statistics and the random generators included.

    Args:
        network: from images (B, channels, H, W) to one tensor.
        pool: dotted name of the module to take for the average; None to find it.

    Returns:
        The location. With another pool there, the network was tried at all sizes of the search.

    Raises:
        ValueError: there is no such module, it is not at the end of the network, or without a name the place
            cannot be told. The message names the candidates.
    """
    if pool is not None:
        _check_name(network, pool)
    parameter = _a_parameter(network)
    if parameter.is_meta:
        raise ValueError(
            f"the trunk ({type(network).__name__}) must be on a real device, got parameters on 'meta': its "
            "pool is found by running it"
        )
    seen = _Seen()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with evaluation(network), torch.random.fork_rng([parameter.device] if parameter.is_cuda else []):
        try:
            location = _search(network, pool, seen, _in_channels(network))
        except NotFoundError as error:
            raise ValueError(
                f"cannot tell where the trunk ({type(network).__name__}) averages its local features: "
                f"{error}. {_candidates(network, seen)}. Give the dotted name of its last pool as `pool`, or "
                "wrap the part of the network that returns feature maps (B, C, H, W) or tokens (B, N, C)"
            ) from None
        finally:
            for name, buffer in network.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
    return location


def _search(network: nn.Module, pool: str | None, seen: _Seen, in_channels: int) -> PoolLocation:
    places: list[Place] = []
    has_moved = False
    last_run = Run()
    images = last_images = _noise(network, in_channels, 1, 1)
    for size in sorted({*_IMAGE_SIZES, *_own_sizes(network)}):
        images = _noise(network, in_channels, size, size)
        run = _plain_run(network, images, seen)
        if run is None:
            continue
        place = find_place(network, run, images, pool)
        if place is None and not places:
            continue  # at a small size nothing may be left to average
        if not places or place is None or place.location != places[-1].location:
            has_moved = bool(places)
            places = [_larger_takes_over(places, place, images)]
        else:
            places.append(place)
        last_images, last_run = images, run
        if len({place.num_positions for place in places if place.is_complete}) > 1:
            break
    else:
        if has_moved:
            raise NotFoundError("where it averages, or over how many channels, depends on the images' size")
    if not seen.num_runs and in_channels != 3:
        # Its first layer may rearrange the pixels of images in color, as TResNet's does.
        return _search(network, pool, seen, in_channels=3)
    if not any(place.is_complete for place in places):
        raise NotFoundError(_reason(seen))
    location = places[0].location
    _check_prefix_tokens(network, places)
    side = last_images.shape[-1]
    for height, width in [(side, 2 * side), *((size, size) for size in _own_sizes(network) if size > side)]:
        images = _noise(network, in_channels, height, width)
        run = _plain_run(network, images, seen)
        place = None if run is None else find_place(network, run, images, pool)
        if run is not None and (place is None or place.location != location):
            raise NotFoundError(_contradiction(location, images))
    if pool is None:
        _check_classes(network, location, last_run)
    return replace(location, returns_average=returns_average_itself(network, location, last_images))


def _larger_takes_over(places: list[Place], place: Place | None, images: Tensor) -> Place:
    """The place at a larger size, where it is not the one at a smaller size."""
    if places and (place is None or (places[-1].location.pool is not None and place.location.pool is None)):
        raise NotFoundError(_contradiction(places[-1].location, images))
    assert place is not None
    return place


def _check_prefix_tokens(network: nn.Module, places: list[Place]) -> None:
    """A number of tokens that is a grid may be so by prefix tokens, but not at two sizes."""
    numbers = {place.num_positions for place in places}
    if places[0].location.features is not returned_tokens or len(numbers) > 1:
        return
    number = num_prefix_tokens_within(network)
    raise NotFoundError(
        f"it says that it has {number} prefix token{'' if number == 1 else 's'} (num_prefix_tokens, "
        f"cls_token or dist_token of it or of a module in it), and whether the {numbers.pop()} tokens it "
        "returns are all patches cannot be told; if they are, set its num_prefix_tokens = 0"
    )


def _check_classes(network: nn.Module, location: PoolLocation, run: Run) -> None:
    if location.pool is None:
        return
    if classifier := classifier_in_front(network, location, run):
        raise NotFoundError(
            f"{location.pool!r} averages maps that {classifier!r} makes, which is the classifier's place in "
            "its library, so that they may be maps of classes; if they are to be pooled, name it"
        )
    num_classes = getattr(network, "num_classes", None)
    has_classifier = any(
        True for name in location.head_modules for _ in network.get_submodule(name).parameters()
    )
    if num_classes == location.num_features and not has_classifier:
        raise NotFoundError(
            f"{location.pool!r} averages maps of its {num_classes} classes, which no classifier follows"
        )


def _plain_run(network: nn.Module, images: Tensor, seen: _Seen) -> Run | None:
    try:
        run = watched_run(network, lambda: network(images))
    except Exception as error:  # whatever a network meets at a size that it was not made for
        seen.errors.append(f"{tuple(images.shape)}: {error}")
        return None
    seen.num_runs += 1
    seen.averages = [call.name for call in averaging_calls(network, run)] or seen.averages
    several = dict.fromkeys(
        call.name for call in run.calls if call.name and _is_several_positions(call.output_shape)
    )
    seen.features = list(outermost(several))
    return run


def _own_sizes(network: nn.Module) -> list[int]:
    """What the network says that its images must measure; nothing for most."""
    config = getattr(network, "pretrained_cfg", None)
    described = [
        config.get("input_size") if isinstance(config, dict) else None,
        *(getattr(network, name, None) for name in ("image_size", "img_size", "input_size")),
        getattr(getattr(network, "patch_embed", None), "img_size", None),
    ]
    sizes = (size[-1] if isinstance(size, (tuple, list)) and size else size for size in described)
    return sorted({size for size in sizes if isinstance(size, int) and 8 <= size <= 1024})


def _in_channels(network: nn.Module) -> int:
    """Of images in color or gray, if a convolution takes that, else what the first convolution takes."""
    channels = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    return next((number for number in (3, 1, *channels) if number in channels), 3)


def _noise(network: nn.Module, in_channels: int, height: int, width: int) -> Tensor:
    """Two images."""
    noise = torch.randn(2, in_channels, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(_a_parameter(network))


def _a_parameter(network: nn.Module) -> Tensor:
    return next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))


def _is_several_positions(shape: tuple[int, ...]) -> bool:
    return math.prod(shape[2:]) > 1 if len(shape) == 4 else len(shape) == 3 and shape[1] > 1


# --- Messages ---


def _check_name(network: nn.Module, pool: str) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if pool not in names:
        close = difflib.get_close_matches(pool, names, n=5) or _pools_by_name(network)
        raise ValueError(
            f"pool must be a module of the trunk ({type(network).__name__}), got {pool!r}; candidates are "
            f"{close}"
        )


def _pools_by_name(network: nn.Module) -> list[str]:
    described = [(name, f"{name} ({type(module).__name__})") for name, module in network.named_modules()]
    return [text for name, text in described if name and "pool" in text.lower()]


def _contradiction(location: PoolLocation, images: Tensor) -> str:
    found = "the output holds" if location.pool is None else f"{location.pool!r} averages all"
    return f"{found} local features of small images, but not of {tuple(images.shape[2:])}"


def _reason(seen: _Seen) -> str:
    if not seen.num_runs:
        tried = ", ".join(map(str, _IMAGE_SIZES))
        return f"it takes images of none of the sizes {tried}: {seen.errors[0] if seen.errors else ''}"
    if seen.averages:
        return f"the candidates {seen.averages} average feature maps, but what follows them cannot be dropped"
    return "no module gives the average of all positions of its input"


def _candidates(network: nn.Module, seen: _Seen) -> str:
    pools = list(dict.fromkeys([*seen.averages, *_pools_by_name(network)]))
    return f"Candidates are {pools or 'no pools'}, and behind one of {seen.features or 'no modules'}"
