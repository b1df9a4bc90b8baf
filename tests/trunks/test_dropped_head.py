"""Which layers a wrapped network drops with a word, and which without."""

import logging

import pytest
import timm
import torchvision
from torch import nn

from pml_xbml.trunks import PrototypePoolingTrunk
from tests.trunks.own_networks import Headed, convolutions, own_sequential


def with_own_head(head: nn.Module) -> nn.Module:
    network = torchvision.models.resnet18()
    network.fc = head
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
            (Headed, "head.1 (Linear(12, 6)), head.3 (Linear(6, 4))"),
            (own_sequential, "8 (Linear(12, 4))"),
        ],
    )
    def test_hidden_layers_and_heads_of_other_sizes_are_told(self, build, told, caplog):
        PrototypePoolingTrunk(build())
        assert told in caplog.text
