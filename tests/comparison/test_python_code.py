"""The pasted lines are run, and make what the run trained with."""

import copy
import dataclasses

import pytest
import torch

from pml_xbml.comparison import LOSSES, RunConfig
from pml_xbml.comparison.control_loss import ControlLoss
from pml_xbml.comparison.frozen_stages import FrozenStages
from pml_xbml.comparison.loss_table import LossSettings
from pml_xbml.comparison.models import build_models, cross_batch_loss, keep_norms
from pml_xbml.comparison.networks import build_network
from pml_xbml.comparison.python_code import python_code
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk

IMAGES = torch.rand(8, 3, 32, 32)
LABELS = [label for label in range(16) for _ in range(4)]


def run_code(config):
    namespace = {"images": IMAGES, "labels": LABELS}
    exec(python_code(config), namespace)
    return namespace


def settings_of(module):
    """The numbers and words that a loss was made with, those of its parts included."""
    found = {}
    for name, value in vars(module).items():
        is_setting = not name.startswith("_") and name not in ("training", "collect_stats")
        if isinstance(value, (int, float, str)) and is_setting:
            found[name] = value
    for name, child in module.named_children():
        found[name] = (type(child).__name__, settings_of(child))
    return found


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("arm", ["plain", "xml", "control"])
def test_the_lines_build_the_loss_of_the_run(loss, arm):
    table: LossSettings = LOSSES[loss]
    config = RunConfig(loss=loss, embedding_size=16, samples_per_class=2, batch_size=8)
    if arm != "plain":
        config = dataclasses.replace(
            config,
            cross_batch_weight=0.4,
            control=arm == "control",
            loss_options={"ridge": 0.3},
            pooling_options={"num_prototypes": 8},
        )
    made = run_code(config)
    expected = table.build(16, 16)
    if arm == "xml":
        assert isinstance(made["loss"], CrossBatchPrototypeLoss)
        options = {**config.loss_options, "collect_stats": False}
        expected = cross_batch_loss(
            dataclasses.replace(config, loss_options=options), expected, made["trunk"]
        )
        assert made["trunk"].prototypes.shape[0] == 8
        assert settings_of(made["loss"].expressed_loss) == settings_of(expected.expressed_loss)
    if arm == "control":
        assert isinstance(made["loss"], ControlLoss)
        assert made["loss"].weight == 0.4
        assert settings_of(made["loss"].loss) == settings_of(expected)
    else:
        assert settings_of(made["loss"]) == settings_of(expected)
        assert [p.shape for p in made["loss"].parameters()] == [p.shape for p in expected.parameters()]
    assert isinstance(made["trunk"], PrototypePoolingTrunk) == (arm == "xml")
    assert made["embedder"].weight.shape == (16, made["embedder"].in_features)
    assert made["embedder"](made["trunk"](IMAGES)).shape == (8, 16)
    assert ("miner" in made) == (table.build_miner is not None)
    sampler = made["sampler"]
    assert isinstance(sampler, DisjointClassPairSampler)
    assert (sampler.m_per_class, sampler.batch_size) == (2, 8)


def test_every_option_of_the_loss_is_written_down():
    config = RunConfig(cross_batch_weight=0.3)
    code = python_code(config)
    assert "    cross_batch_weight=0.3,\n" in code
    assert "    ridge=0.05,\n" in code


@pytest.mark.parametrize(
    ("trunk", "pretrained", "line"),
    [
        ("resnet18", None, "network = torchvision.models.get_model('resnet18', weights=None)"),
        ("resnet18", "DEFAULT", "network = torchvision.models.get_model('resnet18', weights='DEFAULT')"),
        ("resnet10t", None, "network = timm.create_model('resnet10t', pretrained=False)"),
        ("resnet10t", "DEFAULT", "network = timm.create_model('resnet10t', pretrained=True)"),
        ("small", None, "network = trunks.SmallTrunk()"),
    ],
)
def test_network(trunk, pretrained, line):
    code = python_code(RunConfig(trunk=trunk, pretrained=pretrained))
    assert line in code.splitlines()
    if pretrained is None:
        assert run_code(RunConfig(trunk=trunk, embedding_size=8))["trunk"](IMAGES).shape[0] == 8


def test_weights_of_a_file(tmp_path):
    from pml_xbml.trunks import SmallTrunk

    network = SmallTrunk()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    config = RunConfig(pretrained=str(tmp_path / "weights.pth"), iterations=0)
    made = run_code(config)
    for loaded, saved in zip(made["network"].parameters(), network.parameters(), strict=False):
        assert torch.equal(loaded, saved)
    assert made["trunk"](IMAGES).ndim == 2
    assert not made["trunk"].training


OWN_NETWORK = """
import torch


def stages():
    block = lambda first, last: torch.nn.Sequential(
        torch.nn.Conv2d(first, last, 3, padding=1), torch.nn.BatchNorm2d(last), torch.nn.ReLU()
    )
    return torch.nn.Sequential(block(3, 8), block(8, 8), block(8, 8))
"""


def network_and_weights(kind, folder):
    """A trunk by name, and a file with its weights."""
    if kind == "own":
        (folder / "mine.py").write_text(OWN_NETWORK)
        kind = f"{folder / 'mine.py'}:stages"
    torch.save(build_network(kind).state_dict(), folder / "weights.pth")
    return kind, str(folder / "weights.pth")


@pytest.mark.parametrize("arm", ["plain", "xml", "control"])
@pytest.mark.parametrize(
    ("kind", "freeze"),
    [("own", "1"), ("small", "6"), ("test_resnet.r160_in1k", "auto"), ("test_vit", "auto")],
)
def test_what_the_run_froze_is_frozen_in_training(kind, freeze, arm, tmp_path):
    trunk, pretrained = network_and_weights(kind, tmp_path)
    images = torch.rand(8, 3, 160, 160) if kind.startswith("test_") else IMAGES
    weight = None if arm == "plain" else 0.4
    config = RunConfig(
        trunk=trunk, pretrained=pretrained, freeze=freeze, cross_batch_weight=weight, control=arm == "control"
    )
    made = {"images": images, "labels": LABELS}
    exec(python_code(config), made)
    in_the_run, _ = build_models(config, torch.device("cpu"))
    stages = FrozenStages(in_the_run, freeze, images.shape[-1])
    trained = {key for key, parameter in in_the_run.named_parameters() if parameter.requires_grad}
    # What the pasted lines built has the weights of the file, frozen as in the run.
    pasted = made["trunk"]
    assert {key for key, parameter in pasted.named_parameters() if parameter.requires_grad} == trained
    weights = {key: value for key, value in in_the_run.state_dict().items() if "prototypes" not in key}
    assert all(torch.equal(pasted.state_dict()[key], value) for key, value in weights.items())
    pasted.train()
    embeddings = made["embedder"](pasted(images))
    loss = made["loss"](embeddings, torch.arange(8) // 2)
    loss.backward()
    # In evaluation mode, so that nothing of it has changed; what is above is trained.
    frozen = {key for key in weights if key not in trained}
    assert all(torch.equal(pasted.state_dict()[key], weights[key]) for key in frozen)
    reached = {key for key, parameter in pasted.named_parameters() if parameter.grad is not None}
    assert reached
    assert reached <= trained
    names = [name for name, module in in_the_run.named_modules() if module in stages._frozen]
    assert names
    assert not any(part.training for name in names for part in pasted.get_submodule(name).modules())
    in_the_run.train()
    keep_norms(config, in_the_run)
    torch.testing.assert_close(pasted(images), in_the_run(stages.compute(images)))


def test_a_copy_of_a_frozen_trunk_is_frozen_too():
    trunk = PrototypePoolingTrunk(build_network("resnet18"))
    FrozenStages(trunk, "layer2", cut=False)
    copied = copy.deepcopy(trunk).train()
    copied(torch.rand(2, 3, 64, 64))
    assert not copied.trunk.layer2[0].bn1.training
    assert copied.trunk.layer3[0].bn1.training


def test_without_freezing_nothing_is_frozen():
    assert "frozen_stages" not in python_code(RunConfig(trunk="resnet18"))
