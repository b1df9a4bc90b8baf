import copy
import io
import itertools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pretrainedmodels
import pytest
import timm
import torch
import torchvision
from pytorch_metric_learning.utils import common_functions as c_f
from record_keeper import RecordKeeper
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from pml_xbml.trunks import PrototypePooling, PrototypePoolingTrunk
from tests.trunks.own_networks import (
    NUM_PROTOTYPES,
    convolutions,
    own_sequential,
)


def without(*modules: str) -> Callable[[nn.Module], nn.Module]:
    """The network with an identity for the modules that follow its average."""

    def drop(network: nn.Module) -> nn.Module:
        for module in modules:
            setattr(network, module, nn.Identity())
        return network

    return drop


class AverageOfPatchTokens(nn.Module):
    """What torchvision's vision transformer's encoder gives for the patches, averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = []
        handle = self.network.encoder.register_forward_hook(lambda *call: tokens.append(call[-1]))
        self.network(images)
        handle.remove()
        return tokens[0][:, 1:].mean(dim=1)


def flatten_for_classifier(network: nn.Module) -> nn.Module:
    network.classifier = nn.Flatten()
    return network


def timm_without_classifier(network: nn.Module) -> nn.Module:
    network.reset_classifier(0, "avg")
    return network


@dataclass
class Backbone:
    """A network that wraps by itself, and how to build from it what the wrapped trunk must equal."""

    build: Callable[[], nn.Module]
    reference: Callable[[nn.Module], nn.Module]
    num_features: int
    image_size: int = 64
    tolerance: float = 0.0
    ends_in: str | None = None


def of_torchvision(name: str, reference: Callable[[nn.Module], nn.Module], num_features: int, **kwargs):
    return Backbone(
        lambda: torchvision.models.get_model(name, weights=None), reference, num_features, **kwargs
    )


BACKBONES = {
    "resnet18": of_torchvision("resnet18", without("fc"), 512, ends_in="avgpool"),
    "resnet50": of_torchvision("resnet50", without("fc"), 2048, ends_in="avgpool"),
    "resnext50_32x4d": of_torchvision("resnext50_32x4d", without("fc"), 2048, ends_in="avgpool"),
    "regnet_y_400mf": of_torchvision("regnet_y_400mf", without("fc"), 440, ends_in="avgpool"),
    "efficientnet_b0": of_torchvision("efficientnet_b0", without("classifier"), 1280, ends_in="avgpool"),
    "mobilenet_v2": of_torchvision("mobilenet_v2", without("classifier"), 1280),
    "mobilenet_v3_small": of_torchvision("mobilenet_v3_small", without("classifier"), 576, ends_in="avgpool"),
    "mobilenet_v3_large": of_torchvision("mobilenet_v3_large", without("classifier"), 960, ends_in="avgpool"),
    "densenet121": of_torchvision("densenet121", without("classifier"), 1024),
    "convnext_tiny": of_torchvision("convnext_tiny", flatten_for_classifier, 768, ends_in="avgpool"),
    "vit_b_16": Backbone(
        lambda: torchvision.models.vit_b_16(image_size=32), AverageOfPatchTokens, 768, image_size=32
    ),
    "swin_t": of_torchvision("swin_t", without("head"), 768, ends_in="avgpool"),
    "googlenet": Backbone(
        lambda: torchvision.models.googlenet(init_weights=False),
        without("fc", "dropout"),
        1024,
        ends_in="avgpool",
    ),
    "mnasnet0_5": of_torchvision("mnasnet0_5", without("classifier"), 1280),
    "shufflenet_v2_x0_5": of_torchvision("shufflenet_v2_x0_5", without("fc"), 1024),
    # Its AvgPool2d(7) is global for images of this size alone.
    "bninception": Backbone(
        lambda: pretrainedmodels.bninception(pretrained=None),
        without("last_linear"),
        1024,
        image_size=224,
        tolerance=1e-6,
        ends_in="global_pool",
    ),
    "timm resnet18": Backbone(lambda: timm.create_model("resnet18"), timm_without_classifier, 512),
    "timm vit_tiny": Backbone(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32),
        timm_without_classifier,
        192,
        image_size=32,
    ),
}


@dataclass
class Wrapped:
    backbone: Backbone
    plain_state: dict[str, torch.Tensor]
    images: torch.Tensor
    expected: torch.Tensor
    trunk: PrototypePoolingTrunk

    def fresh_trunk(self) -> PrototypePoolingTrunk:
        return copy.deepcopy(self.trunk)

    def assert_equal(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.backbone.tolerance)


@pytest.fixture(scope="module", params=BACKBONES)
def wrapped(request) -> Wrapped:
    torch.manual_seed(0)
    backbone = BACKBONES[request.param]
    network = backbone.build()
    plain_state = copy.deepcopy(network.state_dict())
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        expected = backbone.reference(copy.deepcopy(network)).eval()(images)
    return Wrapped(
        backbone, plain_state, images, expected, PrototypePoolingTrunk(network, num_prototypes=NUM_PROTOTYPES)
    )


def test_evaluation_gives_the_network_up_to_its_average(wrapped):
    trunk = wrapped.fresh_trunk().eval()
    assert trunk.num_features == wrapped.backbone.num_features
    assert wrapped.expected.std() > 0
    with torch.no_grad():
        wrapped.assert_equal(trunk(wrapped.images), wrapped.expected)
    assert trunk.histograms is None


def test_wrapping_is_in_place(wrapped):
    trunk = wrapped.trunk
    if wrapped.backbone.ends_in is not None:
        assert trunk.trunk.get_submodule(wrapped.backbone.ends_in) is trunk.pooling
    assert [m for m in trunk.modules() if isinstance(m, PrototypePooling)] == [trunk.pooling]


def test_training_gives_histograms_and_no_parameter_is_left_behind(wrapped):
    trunk = wrapped.fresh_trunk().train()
    output = trunk(wrapped.images)
    histograms = trunk.histograms
    assert histograms.shape == (2, NUM_PROTOTYPES)
    torch.testing.assert_close(histograms.sum(dim=1), torch.ones(2))
    (output.sum() + (histograms * torch.randn(2, NUM_PROTOTYPES)).sum()).backward()
    assert trunk.prototypes.grad.abs().sum() > 0
    assert [name for name, p in trunk.named_parameters() if p.grad is None] == []


def test_unwrapping_gives_a_plain_network_of_the_same_outputs(wrapped):
    trunk = wrapped.fresh_trunk().eval()
    network = trunk.unwrap()
    with torch.no_grad():
        wrapped.assert_equal(network(wrapped.images), wrapped.expected)
        wrapped.assert_equal(trunk(wrapped.images), wrapped.expected)
    assert not any(
        isinstance(module, (PrototypePooling, PrototypePoolingTrunk)) for module in network.modules()
    )
    assert not any("prototypes" in name for name in network.state_dict())
    assert not any(module.training for module in network.modules())
    with pytest.raises(RuntimeError, match="unwrapped"):
        _ = trunk.pooling


def test_checkpoint_of_the_plain_backbone_loads(wrapped):
    trunk = wrapped.fresh_trunk().eval()
    prototypes = trunk.prototypes.detach().clone()
    with torch.no_grad():
        for parameter in trunk.trunk.parameters():
            parameter.mul_(1.5)
        trunk.prototypes.copy_(prototypes)
        assert not torch.equal(trunk(wrapped.images), wrapped.expected)
        state = wrapped.plain_state
        keys = list(state)
        incompatible = trunk.load_state_dict(state)
        assert not incompatible.missing_keys
        assert not incompatible.unexpected_keys
        assert list(state) == keys
        wrapped.assert_equal(trunk(wrapped.images), wrapped.expected)
    assert torch.equal(trunk.prototypes, prototypes)


def test_checkpoints_of_wrapped_and_unwrapped_trunks_load(wrapped):
    trunk, other = wrapped.fresh_trunk().eval(), wrapped.fresh_trunk().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        other.load_state_dict(trunk.state_dict(), strict=True)
        assert torch.equal(other.prototypes, trunk.prototypes)
        for parameter in other.trunk.parameters():
            parameter.mul_(1.5)
        other.load_state_dict(trunk.unwrap().state_dict(), strict=True)
        wrapped.assert_equal(other(wrapped.images), wrapped.expected)


@pytest.mark.parametrize(
    ("build", "image_size"),
    [
        (lambda: torchvision.models.inception_v3(init_weights=False), 128),
        (lambda: pretrainedmodels.densenet121(pretrained=None), 64),
        (lambda: timm.create_model("mobilenetv3_small_100"), 64),
        (lambda: timm.create_model("efficientnet_b0"), 64),
        (lambda: timm.create_model("convnext_atto"), 64),
        (lambda: timm.create_model("xcit_nano_12_p16_224", depth=2), 224),
    ],
)
def test_other_networks_wrap_too(build, image_size):
    images = torch.randn(2, 3, image_size, image_size)
    trunk = PrototypePoolingTrunk(build().eval(), num_prototypes=NUM_PROTOTYPES)
    output = trunk(images)
    assert output.shape == (2, trunk.num_features)
    output.sum().backward()
    unused = [parameter for parameter in trunk.parameters() if parameter.grad is None]
    assert len(unused) == 1
    assert unused[0] is trunk.prototypes


# --- Networks that no table knows ---


def test_options_reach_the_pooling_and_wrong_ones_leave_the_network_alone():
    network = own_sequential()
    with pytest.raises(ValueError, match="temperature"):
        PrototypePoolingTrunk(network, temperature=0)
    for wrong, nearest in [("num_prototype", "num_prototypes"), ("temprature", "temperature")]:
        message = rf"arguments of PrototypePoolingTrunk .* got {wrong}; did you mean {nearest}\?"
        with pytest.raises(TypeError, match=message):
            PrototypePoolingTrunk(network, **{wrong: 3})
    with pytest.raises(
        TypeError, match=r"among trunk, num_prototypes, pool, temperature, .*got num_features$"
    ):
        PrototypePoolingTrunk(network, num_features=3)
    assert isinstance(network[5], nn.AdaptiveAvgPool2d)
    trunk = PrototypePoolingTrunk(
        network, 3, temperature=0.5, similarity="dot", output="prototypes", eval_histograms=True
    ).eval()
    pooling = trunk.pooling
    assert pooling.prototypes.shape == (3, 12)
    assert (pooling.temperature, pooling.similarity, pooling.output) == (0.5, "dot", "prototypes")
    output = trunk(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(output, trunk.histograms @ trunk.prototypes)
    with pytest.raises(ValueError, match="output='prototypes' cannot be unwrapped"):
        trunk.unwrap()


def test_feature_maps_of_the_wrong_rank():
    trunk = PrototypePoolingTrunk(nn.Sequential(nn.Conv2d(3, 12, 3)), NUM_PROTOTYPES).eval()
    with pytest.raises(ValueError, match=r"feature maps \(B, 12, H, W\) or tokens \(B, N, 12\)"):
        trunk(torch.randn(3, 16, 16))
    with pytest.raises(ValueError, match=r"cannot tell .* Candidates are no pools"):
        PrototypePoolingTrunk(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)))


# --- Prototypes from images ---


def test_prototypes_start_as_local_features_that_cover_all():
    network = nn.Sequential(*convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        # Without a zero vector, which has no direction, among the local features.
        network[3].bias.fill_(0.5)
    features = copy.deepcopy(network[:5]).eval()
    trunk = PrototypePoolingTrunk(network, 16)
    statistics = network[1].running_mean.clone()
    network[1].eval()
    images = torch.randn(40, 3, 16, 16)
    radius = trunk.init_prototypes(images)

    with torch.no_grad():
        local_features = features(images).permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    prototypes = trunk.prototypes.detach().double().numpy()
    distances = np.linalg.norm(local_features[:, None] - prototypes, axis=2)
    assert distances.min(axis=0).max() < 1e-6
    units = [
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (local_features, prototypes)
    ]
    cover = np.linalg.norm(units[0][:, None] - units[1], axis=2).min(axis=1).max()
    assert radius == pytest.approx(cover, abs=1e-5)

    assert trunk.training
    assert network[0].training
    assert not network[1].training
    assert torch.equal(network[1].running_mean, statistics)
    assert trunk.histograms is None
    assert not trunk.pooling._forward_pre_hooks


def test_the_network_runs_on_few_images_at_a_time_and_leaves_no_histograms():
    network = nn.Sequential(*convolutions())
    trunk = PrototypePoolingTrunk(network, 2, eval_histograms=True)
    sizes = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    trunk.init_prototypes(torch.randn(70, 3, 16, 16))
    assert sum(sizes) == 70
    assert max(sizes) == 32
    assert trunk.histograms is None


def test_images_may_be_of_several_sizes():
    trunk = PrototypePoolingTrunk(nn.Sequential(*convolutions()), 8)
    assert 0 < trunk.init_prototypes([torch.randn(4, 3, 16, 16), torch.randn(3, 3, 24, 32)]) < 2


def test_images_come_as_a_tensor_a_list_or_from_a_loader():
    network = nn.Sequential(*convolutions())
    images = torch.randn(70, 3, 16, 16)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.zeros(70)), batch_size=32
    )
    trunk = PrototypePoolingTrunk(network, 8)
    expected = trunk.init_prototypes(images)
    prototypes = trunk.prototypes.detach().clone()
    for same in (list(images.split(32)), loader, [(images, None)]):
        assert trunk.init_prototypes(same) == expected
        assert torch.equal(trunk.prototypes, prototypes)
    assert 0 < trunk.init_prototypes(list(images)) < 2


def test_images_of_a_loader_that_never_ends_are_512():
    network = nn.Sequential(*convolutions())
    trunk = PrototypePoolingTrunk(network, 2)
    sizes = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    trunk.init_prototypes(torch.randn(30, 3, 16, 16) for _ in itertools.count())
    assert sum(sizes) == 512


def test_wrong_images():
    trunk = PrototypePoolingTrunk(nn.Sequential(*convolutions()), 64)
    with pytest.raises(TypeError, match=r"got torch\.uint8: pass images\.float\(\) / 255"):
        trunk.init_prototypes(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    for dtype in (torch.float64, torch.float16):
        message = rf"must be torch\.float32, .* got {dtype}: pass images\.to\(torch\.float32\)"
        with pytest.raises(TypeError, match=message):
            trunk.init_prototypes(torch.zeros(4, 3, 16, 16, dtype=dtype))
    with pytest.raises(RuntimeError, match="channels"):
        trunk.init_prototypes(torch.zeros(4, 5, 16, 16))
    with pytest.raises(TypeError, match=r"batches .* got str"):
        trunk.init_prototypes(["image.png"])
    with pytest.raises(TypeError, match="images must be a tensor, a list of tensors or a loader, got 3"):
        trunk.init_prototypes(3)
    with pytest.raises(ValueError, match="at least one image, got an empty list"):
        trunk.init_prototypes([])
    for shape in [(3, 16, 16), (0, 3, 16, 16)]:
        with pytest.raises(ValueError, match=r"images must be \(B, channels, H, W\)"):
            trunk.init_prototypes(torch.randn(shape))
    with pytest.raises(ValueError, match="num_prototypes = 64"):
        trunk.init_prototypes(torch.randn(1, 3, 16, 16))


# --- Modes, copies, formats ---


def test_wrapping_draws_no_random_numbers():
    networks = [own_sequential(), torchvision.models.resnet18(), nn.Sequential(*convolutions())]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    for network in networks:
        PrototypePoolingTrunk(network, NUM_PROTOTYPES)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_modes_and_types_of_the_network_are_kept():
    network = own_sequential().double().eval()
    network[0].train()
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES)
    assert not trunk.training
    assert not trunk.pooling.training
    assert network[0].training
    assert trunk.prototypes.dtype == torch.float64
    assert torch.equal(network[1].running_mean, torch.zeros(8, dtype=torch.float64))


def saved_and_loaded(trunk: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(trunk, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda trunk: pickle.loads(pickle.dumps(trunk)), saved_and_loaded]
)
@pytest.mark.parametrize("build", [own_sequential, torchvision.models.mobilenet_v2])
def test_copies_are_whole(duplicate, build):
    trunk = PrototypePoolingTrunk(build(), NUM_PROTOTYPES)
    images = torch.randn(2, 3, 32, 32)
    trunk(images)
    twin = duplicate(trunk)
    assert twin.histograms is None
    assert twin.pooling is not trunk.pooling
    assert twin.pooling in list(twin.modules())
    trunk.eval(), twin.eval()
    assert torch.equal(twin(images), trunk(images))
    assert torch.equal(twin.unwrap()(images), trunk(images))


def test_channels_last():
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    reference = without("fc")(copy.deepcopy(network)).eval().to(memory_format=torch.channels_last)
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES).eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    assert torch.equal(trunk(images), reference(images))
    trunk.train()(images)
    assert trunk.histograms.shape == (2, NUM_PROTOTYPES)


def test_checkpoints_are_checked_as_ever():
    trunk = PrototypePoolingTrunk(own_sequential(), NUM_PROTOTYPES)
    plain_state = own_sequential().state_dict()
    incomplete = {name: value for name, value in plain_state.items() if name != "3.bias"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "trunk\.3\.bias"'):
        trunk.load_state_dict(incomplete)
    assert trunk.load_state_dict(incomplete, strict=False).missing_keys == ["trunk.3.bias"]
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "trunk\.9\.weight"'):
        trunk.load_state_dict({**plain_state, "9.weight": torch.zeros(1)})
    own_state = trunk.state_dict()
    del own_state["trunk.5.prototypes"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "trunk\.5\.prototypes"'):
        trunk.load_state_dict(own_state)


def test_auxiliary_classifiers_are_dropped():
    trunk = PrototypePoolingTrunk(torchvision.models.googlenet(init_weights=False, aux_logits=True)).train()
    assert trunk(torch.randn(2, 3, 64, 64)).shape == (2, 1024)


def test_exports_as_the_network_without_its_classifier():
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    reference = without("fc")(copy.deepcopy(network)).eval()
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES).eval()
    images = torch.randn(2, 3, 64, 64)
    exported, plain = (torch.export.export(module, (images,)) for module in (trunk, reference))

    def operations(program) -> list[str]:
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        return [name for name in names if "flatten" not in name]

    assert operations(exported) == operations(plain)
    assert torch.equal(exported.module()(images), reference(images))
    compiled = torch.compile(trunk, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), reference(images))


def test_timm_is_not_needed(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "pretrainedmodels")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert PrototypePoolingTrunk(torchvision.models.resnet18()).num_features == 512
    assert PrototypePoolingTrunk(own_sequential()).num_features == 12


# --- pytorch-metric-learning ---


class ListWriter:
    def __init__(self) -> None:
        self.records = {}

    def append(self, group: str, series: str, value: float, iteration: int) -> None:
        self.records[series] = value


def test_what_the_pooling_wants_recorded_is_found_at_the_trunk():
    trunk = PrototypePoolingTrunk(own_sequential(), NUM_PROTOTYPES, collect_stats=True)
    trunk(torch.randn(2, 3, 16, 16))
    writer = ListWriter()
    record_keeper = RecordKeeper(
        record_writer=writer, attributes_to_search_for=c_f.list_of_recordable_attributes_list_names()
    )
    record_keeper.update_records({"trunk": trunk}, global_iteration=0)
    assert writer.records["perplexity"] == pytest.approx(float(trunk.pooling.perplexity))
    assert writer.records.keys() == set(trunk.pooling._record_these_stats)
    for twin in (copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))):
        assert twin.perplexity == trunk.pooling.perplexity
    with pytest.raises(AttributeError, match="something_else"):
        _ = trunk.something_else
    trunk.unwrap()
    record_keeper.update_records({"trunk": trunk}, global_iteration=1)
