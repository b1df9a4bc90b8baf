import builtins
import logging

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
    loaded = build_network("small", pretrained=str(tmp_path / "small.pth"))
    assert all(
        torch.equal(saved.state_dict()[name], loaded.state_dict()[name]) for name in saved.state_dict()
    )


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "no_such_network",
            None,
            "trunk must be 'small', the name of a torchvision or timm model, or a function .*, got 'no_such",
        ),
        (
            "small",
            "DEFAULT",
            "pretrained must be a file .* for the trunk 'small', got 'DEFAULT', which is no file",
        ),
        (
            "torchvision.models:resnet18",
            "x.pth",
            "pretrained must be a file .* got 'x.pth', which is no file",
        ),
        ("resnet18", "NONSENSE", r"pretrained must be a file, 'DEFAULT' or one of \['IMAGENET1K_V1'\]"),
        (
            "test_resnet.r160_in1k",
            "IMAGENET1K_V1",
            "pretrained must be a file or 'DEFAULT' for the timm model",
        ),
        ("resnet18.foo", "DEFAULT", "of which timm has no pretrained weights, got 'DEFAULT'"),
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


def raises():
    raise KeyError("oops")


def leaves():
    raise SystemExit("bye")


def wants(channels):
    return maps()


number = 3
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
        (":f", "Empty module name"),
        ("{file}:none", "returns a torch.nn.Module, got None"),
        ("{file}:missing", "no attribute 'missing'"),
        ("{file}:raises", "got '.*networks.py:raises', which raises KeyError: 'oops'"),
        ("{file}:leaves", "which raises SystemExit: bye"),
        ("{file}:wants", "called without arguments, got .*wants.* missing 1 required positional argument"),
        ("{file}:number", "'int' object is not callable"),
        ("{folder}/syntax.py:f", "got '.*syntax.py:f': SyntaxError: "),
        ("{folder}/zero.py:f", "got '.*zero.py:f': ZeroDivisionError: "),
    ],
)
def test_what_is_no_network_is_refused(name, message, tmp_path):
    for file, text in (("networks.py", NETWORKS), ("syntax.py", "def f(:"), ("zero.py", "1 / 0")):
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=f"trunk must name a function that .*{message}"):
        build_network(name.format(file=tmp_path / "networks.py", folder=tmp_path))


@pytest.mark.parametrize(("library", "name"), [(torchvision.models, "resnet18"), (timm, "test_resnet")])
def test_a_download_that_fails(library, name, monkeypatch):
    def without_network(*arguments, **kwargs):
        logging.getLogger("huggingface_hub.utils._http").warning("retrying")
        raise OSError("no network")

    monkeypatch.setattr(
        library, "get_model" if library is torchvision.models else "create_model", without_network
    )
    with pytest.raises(
        ValueError, match=rf"pretrained must be .*, got 'DEFAULT' for {name}: no network; give a"
    ):
        build_network(name, "DEFAULT")


def test_the_retries_of_a_download_are_no_lines_of_the_terminal(monkeypatch, caplog):
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **b: logging.getLogger("huggingface_hub.x").warning("w")
    )
    build_network("test_resnet", "DEFAULT")
    assert not caplog.records
    logging.getLogger("huggingface_hub.x").warning("afterwards they are")
    assert len(caplog.records) == 1
