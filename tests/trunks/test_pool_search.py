"""What the search for the average reads off networks and shapes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pml_xbml.trunks._dropped_head import _num_classes
from pml_xbml.trunks._known_pools import num_prefix_tokens, timm_features
from pml_xbml.trunks._pool_place import _are_channels_last, _are_positions, _is_in, find_place, outermost
from pml_xbml.trunks._pool_search import _in_channels, _is_several_positions, _noise, _own_sizes
from pml_xbml.trunks._watched_run import watched_run


@pytest.mark.parametrize(
    ("shape", "image_shape", "are_positions"),
    [
        ((2, 5, 1, 2), (2, 3, 8, 8), True),
        ((2, 5, 1, 1), (2, 3, 8, 8), False),
        ((2, 9, 5), (2, 3, 30, 30), True),
        ((2, 10, 5), (2, 3, 30, 30), False),
        ((2, 1, 5), (2, 3, 30, 30), False),
        ((2, 8, 5), (2, 3, 16, 32), True),
        ((2, 8, 5), (2, 3, 32, 16), True),
        ((2, 9, 5), (2, 3, 16, 32), False),
        ((2, 6, 5), (2, 3, 16, 32), False),
    ],
)
def test_tokens_are_positions_if_a_grid_over_the_images_has_as_many(shape, image_shape, are_positions):
    assert _are_positions(torch.zeros(shape), torch.zeros(image_shape)) is are_positions


@pytest.mark.parametrize(
    ("shape", "are_several"),
    [
        ((2, 3, 1, 2), True), ((2, 3, 1, 1), False), ((2, 2, 5), True), ((2, 1, 5), False), ((2, 5), False),
        ((2, 3, 4, 4, 4), False), ((), False), ((2, 3, 0, 4), False), ((2, 0, 5), False),
    ],
)  # fmt: skip
def test_outputs_with_several_positions(shape, are_several):
    assert _is_several_positions(shape) is are_several


@pytest.mark.parametrize(
    ("shape", "image_shape", "are_channels_last"),
    [
        ((2, 4, 4, 9), (2, 3, 32, 32), True), ((2, 9, 4, 4), (2, 3, 32, 32), False),
        ((2, 4, 4, 4), (2, 3, 32, 32), False), ((2, 4, 5, 9), (2, 3, 32, 32), False),
        ((2, 4, 8, 9), (2, 3, 32, 64), True), ((2, 9, 4, 8), (2, 3, 32, 64), False),
        ((2, 8, 4, 9), (2, 3, 64, 32), True), ((2, 8, 4, 9), (2, 3, 32, 64), False),
    ],
)  # fmt: skip
def test_maps_have_their_channels_last_if_their_first_sizes_alone_are_a_grid(
    shape, image_shape, are_channels_last
):
    assert _are_channels_last(torch.zeros(shape), torch.zeros(image_shape)) is are_channels_last


def test_modules_are_named_with_those_in_them():
    assert outermost(dict.fromkeys(["head.0", "head", "header", "fc"])) == ("head", "header", "fc")
    assert [_is_in(name, ("head",)) for name in ("head", "head.0", "header", "")] == [
        True,
        True,
        False,
        False,
    ]


def test_networks_say_their_sizes_in_many_ways():
    network = nn.Sequential()
    assert _own_sizes(network) == []
    network.pretrained_cfg = {"input_size": (3, 224, 236)}
    network.image_size, network.img_size, network.input_size = 8, (64, 96), None
    network.patch_embed = SimpleNamespace(img_size=[48, 1024])
    assert _own_sizes(network) == [8, 96, 236, 1024]
    network.pretrained_cfg, network.patch_embed = "a name", None
    network.image_size, network.img_size, network.input_size = 7, 1025, ()
    assert _own_sizes(network) == []


@pytest.mark.parametrize(
    ("in_channels", "expected"), [([5, 3], 3), ([3, 1], 3), ([4, 1], 1), ([5, 4], 5), ([], 3)]
)
def test_noise_has_the_channels_that_a_convolution_takes(in_channels, expected):
    network = nn.Sequential(*(nn.Conv2d(number, 2, 1) for number in in_channels)).double()
    noise = _noise(network, _in_channels(network), 8, 12)
    assert noise.shape == (2, expected, 8, 12)
    assert noise.dtype == (torch.float64 if in_channels else torch.float32)
    assert torch.equal(noise, _noise(network, expected, 8, 12))


def test_the_number_of_positions_that_a_named_pool_averages():
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(2, 3, 4, 6)
    run = watched_run(network, lambda: network(images))
    assert find_place(network, run, images, pool="1").num_positions == 24


def test_modules_may_have_names_of_any_letters():
    assert _num_classes(nn.ModuleDict({"a-b": nn.Linear(2, 2)}), "a-b") is None


@pytest.mark.parametrize(
    ("attributes", "number"),
    [
        ({}, 0),
        ({"cls_token": torch.zeros(1), "dist_token": None}, 1),
        ({"cls_token": torch.zeros(1), "dist_token": torch.zeros(1)}, 2),
        ({"num_prefix_tokens": 3, "cls_token": torch.zeros(1)}, 3),
        ({"num_prefix_tokens": None, "cls_token": torch.zeros(1)}, 1),
    ],
)
def test_prefix_tokens_are_left_out(attributes, number):
    tokens = torch.randn(2, 9, 5)
    network = SimpleNamespace(forward_features=lambda images: tokens, **attributes)
    assert num_prefix_tokens(network) == number
    assert torch.equal(timm_features(network, None), tokens[:, number:])


def test_maps_with_their_channels_last_are_turned():
    maps = torch.randn(2, 4, 6, 3)
    network = SimpleNamespace(forward_features=lambda images: maps, output_fmt="NHWC", cls_token=0)
    assert torch.equal(timm_features(network, None), maps.permute(0, 3, 1, 2))
    network.output_fmt = "NCHW"
    assert timm_features(network, None) is maps
