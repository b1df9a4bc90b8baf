"""Which layers a wrapped network drops with a word, and which without."""

import logging

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from pml_xbml.trunks import PrototypePoolingTrunk
from pml_xbml.trunks._dropped_head import _expression
from tests.trunks.own_networks import Headed, convolutions, own_sequential


def with_own_head(head: nn.Module) -> nn.Module:
    network = torchvision.models.resnet18()
    network.fc = head
    return network


class L2(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features)


class Unchanged(nn.Module):
    """Of a user's own, like torch's Identity."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.flatten(1)


class NormalizedClassifier(nn.Module):
    """Its only layer is the library's, but not what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(512, 1000)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.linear(features))


class AroundBackbone(nn.Module):
    """A network of a library without its classifier, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.e = with_own_head(nn.Identity()), nn.Linear(512, 64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.e(self.b(images))


def densenet_with(head: nn.Module) -> nn.Module:
    network = torchvision.models.densenet121()
    network.classifier = head
    return network


def convnext_with_own_norm_for_dropout() -> nn.Module:
    network = timm.create_model("test_convnext")
    network.head.drop = nn.BatchNorm1d(64)
    return network


class TestDroppedHeads:
    @pytest.fixture(autouse=True)
    def propagate(self, monkeypatch):
        monkeypatch.setattr(logging.getLogger("PML"), "propagate", True)

    def test_an_own_head_is_told_once_with_how_to_keep_it(self, caplog):
        network = with_own_head(nn.Linear(512, 64))
        assert PrototypePoolingTrunk(network).num_features == 512
        assert len(caplog.records) == 1
        assert caplog.records[0].name == "PML"
        assert "drops what follows the average of ResNet: fc (Linear(512, 64))" in caplog.text
        assert "embedder = network.fc" in caplog.text

    @pytest.mark.parametrize(
        "build",
        [
            torchvision.models.resnet18,
            lambda: timm.create_model("resnet18"),
            lambda: timm.create_model("convnext_atto"),
            lambda: nn.Sequential(nn.Identity(), timm.create_model("test_convnext")),
            lambda: nn.Sequential(*convolutions()),
            torchvision.models.convnext_tiny,
            lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
            lambda: timm.create_model("repvit_m0_9"),
            lambda: with_own_head(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Identity(), Unchanged())),
            lambda: with_own_head(nn.Sequential(nn.Dropout(), nn.Linear(512, 1000))),
        ],
    )
    def test_the_classifier_of_a_library_is_not_told(self, build, caplog):
        PrototypePoolingTrunk(build())
        assert not caplog.records

    @pytest.mark.parametrize(
        ("build", "told"),
        [
            (lambda: timm.create_model("resnet18", num_classes=64), "fc (Linear(512, 64))"),
            (torchvision.models.mobilenet_v3_small, "classifier.0 (Linear(576, 1024))"),
            (lambda: timm.create_model("mobilenetv3_small_050"), "conv_head (Conv2d)"),
            (lambda: timm.create_model("test_convnext", num_classes=0), "head.norm (LayerNorm2d)"),
            (lambda: with_own_head(nn.BatchNorm1d(512)), "fc (BatchNorm1d)"),
            (
                lambda: nn.Sequential(timm.create_model("test_resnet"), nn.Linear(1000, 64)),
                "0.fc (Linear(96, 1000)), 1 (Linear(1000, 64))",
            ),
            (Headed, "head.1 (Linear(12, 6)), head.2 (ReLU), head.3 (Linear(6, 4))"),
            (own_sequential, "8 (Linear(12, 4))"),
        ],
    )
    def test_hidden_layers_and_heads_of_other_sizes_are_told(self, build, told, caplog):
        PrototypePoolingTrunk(build())
        assert told in caplog.text

    @pytest.mark.parametrize(
        ("build", "told"),
        [
            (
                lambda: with_own_head(nn.Sequential(nn.Linear(512, 1000), nn.ReLU(), nn.Linear(1000, 1000))),
                "fc.0 (Linear(512, 1000)), fc.1 (ReLU), fc.2 (Linear(1000, 1000))",
            ),
            (
                lambda: densenet_with(nn.Sequential(nn.Linear(1024, 1000), nn.Linear(1000, 1000))),
                "classifier.0 (Linear(1024, 1000)), classifier.1 (Linear(1000, 1000))",
            ),
            (
                lambda: with_own_head(nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 1000))),
                "fc.0 (BatchNorm1d), fc.1 (Linear(512, 1000))",
            ),
            (
                lambda: with_own_head(nn.Sequential(nn.Linear(512, 1000), nn.BatchNorm1d(1000))),
                "fc.0 (Linear(512, 1000)), fc.1 (BatchNorm1d)",
            ),
            (convnext_with_own_norm_for_dropout, "head.drop (BatchNorm1d), head.fc (Linear(64, 1000))"),
            (lambda: with_own_head(NormalizedClassifier()), "fc.linear (Linear(512, 1000))"),
            (lambda: with_own_head(nn.BatchNorm1d(512, affine=False)), "fc (BatchNorm1d)"),
        ],
    )
    def test_own_layers_are_told_beside_a_layer_like_the_classifier_of_the_library(self, build, told, caplog):
        PrototypePoolingTrunk(build())
        assert told in caplog.text

    @pytest.mark.parametrize(
        ("head", "told"),
        [
            (L2(), "fc (L2)"),
            (nn.Sequential(nn.Flatten(), L2()), "fc.1 (L2)"),
            (nn.Sequential(L2(), nn.Linear(512, 1000)), "fc.0 (L2), fc.1 (Linear(512, 1000))"),
            (nn.Tanh(), "fc (Tanh)"),
        ],
    )
    def test_heads_without_parameters_are_told_if_they_change_features(self, head, told, caplog):
        PrototypePoolingTrunk(with_own_head(head))
        assert f"of ResNet: {told}. To keep a head" in caplog.text
        assert "embedder = network.fc," in caplog.text
        assert head.training

    @pytest.mark.parametrize(
        ("build", "told", "kept"),
        [
            (AroundBackbone, "e (Linear(512, 64))", "embedder = network.e,"),
            (
                lambda: nn.Sequential(timm.create_model("test_resnet", num_classes=0), nn.Linear(96, 64)),
                "1 (Linear(96, 64))",
                "embedder = network[1],",
            ),
            (
                lambda: nn.Sequential(timm.create_model("test_resnet"), nn.Linear(1000, 64)),
                "0.fc (Linear(96, 1000)), 1 (Linear(1000, 64))",
                "(network[0].fc, network[1])",
            ),
        ],
    )
    def test_the_modules_that_are_told_are_those_to_keep(self, build, told, kept, caplog):
        PrototypePoolingTrunk(build())
        assert f": {told}. To keep" in caplog.text
        assert kept in caplog.text


def test_modules_are_named_as_in_python():
    names = ["fc", "0.fc", "b.1", "b.a-b"]
    expected = ["network.fc", "network[0].fc", "network.b[1]", "network.get_submodule('b.a-b')"]
    assert [_expression(name) for name in names] == expected
