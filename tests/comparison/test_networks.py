import builtins

import pytest
import timm
import torch
import torchvision

from pml_xbml.comparison.networks import build_network
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk


def test_small_trunk_is_wrapped_at_its_average():
    images = torch.randn(2, 3, 32, 32)
    plain = build_network("small").eval()
    expected = plain(images)
    wrapped = PrototypePoolingTrunk(plain, num_prototypes=4)
    assert wrapped.num_features == 128
    assert torch.equal(wrapped(images), expected)
    wrapped.train()(images)
    assert wrapped.histograms.shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("small", SmallTrunk),
        ("squeezenet1_1", torchvision.models.SqueezeNet),
        ("test_resnet.r160_in1k", timm.models.ResNet),
    ],
)
def test_names(name, kind):
    assert isinstance(build_network(name), kind)


def test_weights_from_a_file(tmp_path):
    saved = build_network("small")
    torch.save(saved.state_dict(), tmp_path / "small.pth")
    loaded = build_network("small", weights=str(tmp_path / "small.pth"))
    assert all(
        torch.equal(saved.state_dict()[name], loaded.state_dict()[name]) for name in saved.state_dict()
    )


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "no_such_network",
            None,
            "trunk must be 'small' or the name of a torchvision or timm model, got 'no_such",
        ),
        ("small", "DEFAULT", "'small' has no pretrained weights, got 'DEFAULT'"),
        ("resnet18", "NONSENSE", r"weights must be a file, 'DEFAULT' or one of \['IMAGENET1K_V1'\]"),
        ("test_resnet.r160_in1k", "IMAGENET1K_V1", "weights must be a file or 'DEFAULT' for the timm model"),
    ],
)
def test_what_cannot_be_built(name, weights, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, weights)


def test_without_timm_the_message_tells_of_it(monkeypatch):
    import_module = builtins.__import__

    def without_timm(name, *others, **kwargs):
        if name == "timm":
            raise ModuleNotFoundError(name)
        return import_module(name, *others, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ValueError, match="timm's models are known too once timm is installed"):
        build_network("vit_tiny_patch16_224")


NETWORKS = """
import torch


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images):
        return self.patches(images).flatten(2).transpose(1, 2)


def maps():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())


def vectors():
    return torch.nn.Sequential(*maps(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def none():
    return None
"""


@pytest.mark.parametrize("function", ["maps", "vectors", "Tokens"])
def test_a_network_of_ones_own_is_wrapped(function, tmp_path):
    file = tmp_path / "networks.py"
    file.write_text(NETWORKS)
    trunk = PrototypePoolingTrunk(build_network(f"{file}:{function}"), num_prototypes=4)
    assert trunk(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    assert trunk.histograms.shape == (2, 4)


def test_a_network_of_ones_own_comes_from_a_module_too():
    assert isinstance(build_network("torchvision.models:resnet18"), torchvision.models.ResNet)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:f", "No module named 'no'"),
        ("torchvision.models:resnet1800", "no attribute 'resnet1800'"),
        ("no_file.py:f", "No such file"),
        ("{file}:none", "returns a torch.nn.Module, got None"),
    ],
)
def test_what_is_no_network_is_refused(name, message, tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    with pytest.raises(ValueError, match=f"trunk must name a function that .*{message}"):
        build_network(name.format(file=tmp_path / "networks.py"))
