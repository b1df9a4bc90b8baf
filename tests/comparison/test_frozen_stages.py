import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from pml_xbml.comparison.frozen_stages import FrozenStages, freeze_norms
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk

NETWORKS = {
    "resnet18": (torchvision.models.resnet18, "layer3"),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, "features.6"),
    "test_resnet.r160_in1k": (lambda: timm.create_model("test_resnet.r160_in1k"), "layer2"),
    "test_efficientnet": (lambda: timm.create_model("test_efficientnet"), "blocks.1"),
}


def build(name, wrapped):
    torch.manual_seed(0)
    trunk = PrototypePoolingTrunk(NETWORKS[name][0](), num_prototypes=3)
    return trunk if wrapped else trunk.unwrap()


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_above_the_cut_is_what_the_whole_network_does_in_values_and_gradients(name, wrapped):
    whole = build(name, wrapped)
    cut = copy.deepcopy(whole)
    stages = FrozenStages(cut, NETWORKS[name][1])
    images = torch.randn(4, 3, 64, 64)
    for part in stages._frozen:
        assert not any(parameter.requires_grad for parameter in part.parameters())
    # The whole network, frozen by hand.
    trained = {key for key, parameter in cut.named_parameters() if parameter.requires_grad}
    frozen = [key for key, _ in whole.named_parameters() if key not in trained]
    assert frozen
    assert trained
    for network in (whole, cut):
        network.train()
        freeze_norms(network)
    activations = stages.compute(images)
    assert cut.training
    outputs = whole(images), cut(activations.half())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-2, atol=1e-2)
    for output in outputs:
        output.square().mean().backward()
    gradients = [dict(network.named_parameters()) for network in (whole, cut)]
    for key in trained:
        if gradients[0][key].grad is not None:
            expected, got = gradients[0][key].grad, gradients[1][key].grad
            assert (expected - got).norm() <= 0.02 * expected.norm() + 1e-5, key
    assert all(gradients[1][key].grad is None for key in frozen)


def test_the_state_dict_stays_that_of_the_whole_network():
    whole = build("resnet18", True)
    cut = copy.deepcopy(whole)
    FrozenStages(cut, "layer2")
    assert cut.state_dict().keys() == whole.state_dict().keys()
    whole.load_state_dict(cut.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_takes_the_same_module_of_a_wrapped_and_an_unwrapped_trunk(name):
    names = {FrozenStages(build(name, wrapped), "auto").name for wrapped in (True, False)}
    assert len(names) == 1


def test_the_hash_follows_the_frozen_weights_alone():
    stages = FrozenStages(build("resnet18", True), "layer2")
    before = stages.state_hash()
    with torch.no_grad():
        stages.network.trunk.layer4[0].conv1.weight.add_(1)
    assert stages.state_hash() == before
    with torch.no_grad():
        stages.network.trunk.layer1[0].conv1.weight.add_(1)
    assert stages.state_hash() != before


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("layer9", "no module of that name"),
        ("layer3.0.conv1", "does not go on from its output alone"),
    ],
)
def test_where_a_network_cannot_be_cut(freeze, message):
    trunk = build("resnet18", True)
    images = torch.randn(2, 3, 64, 64)
    before = trunk.eval()(images)
    with pytest.raises(
        ValueError, match=f"freeze must name a module .*, got '{freeze}': .*{message}.*layer3"
    ):
        FrozenStages(trunk, freeze)
    assert torch.equal(trunk(images), before)
    assert all(parameter.requires_grad for parameter in trunk.parameters())


def test_what_is_suggested_can_be_cut():
    with pytest.raises(ValueError, match="such as ") as error:
        FrozenStages(build("resnet18", True), "layer9")
    names = str(error.value).rpartition("such as ")[2].split(", ")
    assert names
    for name in names:
        assert FrozenStages(build("resnet18", True), name).name == name


class AroundAll(nn.Module):
    """Maps to which the image itself is added at the end."""

    def __init__(self):
        super().__init__()
        self.lower, self.upper = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, images):
        return self.upper(self.lower(self.stem(images))) + images.mean(dim=1, keepdim=True)


def test_a_network_that_cannot_be_cut_anywhere():
    with pytest.raises(ValueError, match=r"freeze='auto' must find a module .* got none .*train the whole"):
        FrozenStages(PrototypePoolingTrunk(AroundAll()), "auto")
    with pytest.raises(ValueError, match=r"got 'lower': what is above .*; train the whole network$"):
        FrozenStages(PrototypePoolingTrunk(AroundAll()), "lower")


TRANSFORMERS = {
    "vit": lambda: timm.create_model("test_vit", img_size=64),
    "deit": lambda: timm.create_model("deit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 1), embed_dim=12
    ),
    "torchvision": lambda: torchvision.models.VisionTransformer(64, 16, 4, 3, 48, 96),
}


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_cut_and_train_above_the_cut_alone(name, wrapped):
    torch.manual_seed(0)
    trunk = PrototypePoolingTrunk(TRANSFORMERS[name](), num_prototypes=3)
    trunk = trunk if wrapped else trunk.unwrap()
    whole, images = copy.deepcopy(trunk).eval(), torch.randn(5, 3, 64, 64)
    stages = FrozenStages(trunk, "auto", 64)
    before = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    activations = stages.compute(images)
    torch.testing.assert_close(trunk.eval()(activations), whole(images))
    trunk.train()(activations.half()).square().mean().backward()
    assert all(torch.equal(tensor, before[key]) for key, tensor in trunk.state_dict().items())
    trained = {key for key, parameter in trunk.named_parameters() if parameter.requires_grad}
    frozen = {key for key, _ in trunk.named_parameters()} - trained
    reached = {key for key, parameter in trunk.named_parameters() if parameter.grad is not None}
    assert reached
    assert frozen
    assert reached <= trained
    assert all(
        parameter.grad.isfinite().all() for parameter in trunk.parameters() if parameter.grad is not None
    )
    # Positions and class tokens are no module's, and are frozen with what is around them.
    below = {
        key for key in before if key.endswith(("cls_token", "pos_embed", "pos_embedding", "class_token"))
    }
    assert below <= frozen


def test_the_hash_follows_parameters_below_the_cut_that_are_no_modules():
    stages = FrozenStages(PrototypePoolingTrunk(TRANSFORMERS["vit"]()), "auto", 64)
    before = stages.state_hash()
    with torch.no_grad():
        next(p for key, p in stages.network.named_parameters() if key.endswith("pos_embed")).add_(1)
    assert stages.state_hash() != before


def test_auto_takes_a_layer_of_a_network_without_stages():
    names = {
        FrozenStages(trunk if wrapped else trunk.unwrap(), "auto", 32).name
        for wrapped in (True, False)
        for trunk in [PrototypePoolingTrunk(SmallTrunk())]
    }
    assert len(names) == 1
    assert names < {str(number) for number in range(16)}


def test_batches_of_all_sizes_go_through_a_cut_network():
    trunk = build("resnet18", False).eval()
    whole = copy.deepcopy(trunk)
    stages = FrozenStages(trunk, "layer2")
    for count in (1, 3, 8):
        images = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(trunk(stages.compute(images)), whole(images))


def test_frozen_norms_stay_as_they_are_in_training():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    freeze_norms(network)
    before = network[1].running_mean.clone()
    network.train()(torch.randn(4, 3, 5, 5) + 3).sum().backward()
    assert torch.equal(network[1].running_mean, before)
    assert network[1].weight.grad is not None
