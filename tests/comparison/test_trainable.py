import dataclasses

import pytest
import torch

from pml_xbml.comparison import plan_runs
from pml_xbml.comparison.models import splits_of
from pml_xbml.comparison.trainable import check_trainable, image_side

NETWORKS = """
import torch
from torch import nn


def maps():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))


kept = maps()


def same():
    return kept


class Loud(nn.Sequential):
    def forward(self, images):
        return 1e6 * super().forward(images)


def loud():
    return nn.Sequential(Loud(*maps()), nn.Conv2d(8, 8, 1))


class Broken(nn.Sequential):
    def forward(self, images):
        return super().forward(images) * (float("nan") if images.shape[-1] == 16 else 1)


def nan():
    return Broken(*maps())


class Evaluated(nn.Sequential):
    def forward(self, images):
        if self.training and images.shape[-1] == 16:
            raise KeyError("only for deployment")
        return super().forward(images)


def evaluated():
    return Evaluated(*maps())
"""


@pytest.fixture
def check(tiny_run, tmp_path):
    """Checks the tiny run with other settings; a trunk is a function of the file above."""
    (tmp_path / "networks.py").write_text(NETWORKS)

    def check(**settings):
        if "trunk" in settings and settings["trunk"].isidentifier() and settings["trunk"] in NETWORKS:
            settings["trunk"] = f"{tmp_path / 'networks.py'}:{settings['trunk']}"
        settings = {"image_size": 16, **settings}
        run = dataclasses.replace(tiny_run, **settings)
        check_trainable(plan_runs(run, ["contrastive", "proxy_anchor"], None, num_seeds=1), splits_of(run))

    return check


@pytest.mark.parametrize(
    "settings", [{}, {"trunk": "maps"}, {"trunk": "maps", "freeze": "2"}, {"freeze": "auto"}]
)
def test_what_can_be_trained(check, settings):
    check(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6}, r"batch_size must be a multiple of 2 \* samples_per_class = 4, .* got 6"),
        (
            {"batch_size": 48},
            r"batch_size must be at most samples_per_class \* training classes = .*got 48; lower",
        ),
        (
            {"trunk": "alexnet"},
            r"trunk must be a network that averages local features, .*got 'alexnet': .*no module",
        ),
        ({"freeze": "layer9"}, r"freeze must name a module .*got 'layer9'"),
        ({"loss_options": {"ridge": -1}}, "ridge must be"),
        ({"pooling_options": {"num_prototypes": 3000}}, r"num_prototypes must be at most 128, .* got 3000"),
        ({"trunk": "nan"}, r"trunk must give finite features .* of 16 pixels, got others from '.*:nan'"),
        (
            {"trunk": "evaluated"},
            r"trunk must train on images of 16 pixels, got '.*:evaluated', .* KeyError: ",
        ),
        ({"trunk": "loud", "freeze": "0"}, r"freeze must name .* finite in half precision, got '0'"),
        ({"trunk": "vit_tiny_patch16_224", "image_size": 32}, r"got 'vit_tiny_patch16_224', .*Input height"),
    ],
)
def test_what_cannot_be_trained(check, settings, message):
    with pytest.raises(ValueError, match=message):
        check(**settings)


def test_a_function_that_returns_the_same_network_again(check, tmp_path, monkeypatch):
    """The second run would start from what the first one has learned."""
    (tmp_path / "networks_of_a_package.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    check(trunk="networks_of_a_package:maps")
    with pytest.raises(
        ValueError, match=r"makes a new network whenever .*:same', which returns the same one"
    ):
        check(trunk="networks_of_a_package:same")


def test_the_side_is_that_of_the_first_image_that_can_be_read(tiny_run):
    splits = splits_of(tiny_run)

    class FirstBroken(torch.utils.data.Dataset):
        def __getitem__(self, index):
            if index == 0:
                raise OSError("broken")
            return splits.val[index]

        def __len__(self):
            return 2

    assert image_side(dataclasses.replace(splits, val=FirstBroken())) == 16
    with pytest.raises(ValueError, match="dataset must hold images that can be read"):
        image_side(dataclasses.replace(splits, val=torch.utils.data.Subset(FirstBroken(), [0])))
