import copy
import itertools

import pretrainedmodels
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from pml_xbml.trunks import PrototypePooling, PrototypePoolingTrunk
from tests.trunks.own_networks import (
    NUM_PROTOTYPES,
    ChannelsLast,
    FlattenedMaps,
    Headed,
    PooledByFunction,
    ResNetWithOwnForward,
    ReturningDictionary,
    Tokens,
    WithPrefixTokens,
    convolutions,
    own_sequential,
)

OWN_NETWORKS = {
    "sequential": (own_sequential, lambda net: net[:5], 12),
    "unflattened": (lambda: nn.Sequential(*convolutions(), nn.AdaptiveAvgPool2d(1)), lambda net: net[:5], 12),
    "maps": (lambda: nn.Sequential(*convolutions()), lambda net: net, 12),
    "tokens": (Tokens, lambda net: net.body, 12),
    "channels last": (ChannelsLast, lambda net: net.body, 12),
    "head": (Headed, lambda net: nn.Sequential(net.body, net.excitation), 12),
    "nested": (
        lambda: nn.Sequential(Headed(), nn.Linear(4, 2)),
        lambda net: nn.Sequential(net[0].body, net[0].excitation),
        12,
    ),
    "fixed size": (
        lambda: nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.AvgPool2d(28), nn.Flatten(), nn.Linear(5, 2)),
        lambda net: net[:1],
        5,
    ),
    "patched by pretrainedmodels": (
        lambda: pretrainedmodels.resnet18(pretrained=None),
        lambda net: net.features,
        512,
    ),
    "own forward": (
        lambda: ResNetWithOwnForward(BasicBlock, [1, 1, 1, 1]),
        lambda net: nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1),
        64,
    ),
}


@pytest.mark.parametrize(("build", "features", "num_features"), OWN_NETWORKS.values(), ids=OWN_NETWORKS)
def test_networks_of_ones_own_are_measured(build, features, num_features):
    network = build().eval()
    in_channels = min(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    images = torch.randn(2, in_channels, 28, 28)
    expected = features(copy.deepcopy(network))(images).mean((2, 3))
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES)
    assert trunk.num_features == num_features
    torch.testing.assert_close(trunk(images), expected, rtol=0, atol=1e-6)
    assert torch.equal(trunk.unwrap()(images), trunk(images))


def test_a_first_layer_may_rearrange_the_pixels():
    """TResNet does; no convolution takes the three channels of its images."""
    body = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 12, 3, padding=1)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = body(images).mean((2, 3))
    trunk = PrototypePoolingTrunk(
        nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    )
    torch.testing.assert_close(trunk.eval()(images), expected)


def test_what_follows_the_average_is_dropped_by_order_of_running():
    trunk = PrototypePoolingTrunk(Headed(), NUM_PROTOTYPES)
    assert isinstance(trunk.trunk.average, PrototypePooling)
    assert isinstance(trunk.trunk.head, nn.Identity)
    assert isinstance(trunk.trunk.excitation.pool, nn.AdaptiveAvgPool2d)


def test_removed_classifiers_do_not_matter():
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    assert PrototypePoolingTrunk(network).num_features == 512


def with_maximum():
    network = torchvision.models.resnet18()
    network.avgpool = nn.AdaptiveMaxPool2d(1)
    return network


@pytest.mark.parametrize(
    ("build", "pool"),
    [
        (with_maximum, "avgpool"),
        (lambda: timm.create_model("resnet18", global_pool="max"), "global_pool"),
        (lambda: timm.create_model("resnet18", global_pool="catavgmax"), "global_pool"),
    ],
    ids=["torchvision", "timm", "timm, both"],
)
def test_known_networks_that_do_not_end_in_an_average_are_not_given_one_in_silence(build, pool):
    network = build()
    with pytest.raises(ValueError, match=r"cannot tell where the trunk \(ResNet\) averages its"):
        PrototypePoolingTrunk(network)
    assert PrototypePoolingTrunk(network, pool=pool).num_features == 512


@pytest.mark.parametrize(
    ("build", "candidates"),
    [
        (lambda: Headed(F.normalize), r"\['average', 'excitation\.pool'\]"),
        (lambda: Headed(F.relu), r"\['average', 'excitation\.pool'\]"),
        (lambda: Headed(lambda average: 2 * average), r"\['average', 'excitation\.pool'\]"),
        (PooledByFunction, r"\['excitation\.pool'\]"),
    ],
    ids=["normalize", "relu", "scale", "pooled by a function"],
)
def test_averages_that_functions_follow_or_take_cannot_be_told(build, candidates):
    network = build()
    state = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"cannot tell .* the candidates {candidates} average feature maps"):
        PrototypePoolingTrunk(network)
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_functional_dropout_that_runs_in_training_only_is_noticed():
    class Dropping(Headed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.average(self.body(images)).flatten(1), training=self.training)

    with pytest.raises(ValueError, match=r"candidates \['average'\] average feature maps, but what follows"):
        PrototypePoolingTrunk(Dropping())


def test_maps_that_have_more_channels_in_training_only_are_noticed():
    class Widening(Tokens):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.body(images)
            return torch.cat([maps, maps], dim=1) if self.training else maps

    with pytest.raises(ValueError, match=r"cannot tell where the trunk \(Widening\) averages"):
        PrototypePoolingTrunk(Widening())


@pytest.mark.parametrize("is_wider_in_training", [False, True])
def test_unwrapped_networks_give_the_average_in_training_too(is_wider_in_training):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = nn.Sequential(*convolutions()), nn.Linear(12, 4)

        def forward(self, images):
            logits = self.fc(self.features(images).mean((2, 3)))
            is_wider = self.training and is_wider_in_training
            return torch.cat([logits, logits], dim=1) if is_wider else logits

    unwrapped = PrototypePoolingTrunk(Network()).unwrap()
    assert isinstance(unwrapped, Network) is not is_wider_in_training
    assert unwrapped.train()(torch.randn(2, 3, 32, 32)).shape == (2, 12)


def test_a_norm_between_known_features_and_their_average_is_noticed():
    """Before it is trained it changes nothing."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*convolutions())
            self.norm, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 4)

        def forward(self, images):
            return self.fc(self.norm(self.features(images)).mean((2, 3)))

    with pytest.raises(ValueError, match="no module gives the average of all positions"):
        PrototypePoolingTrunk(Network())


def test_the_first_error_of_a_network_that_takes_no_images_is_told():
    class Network(nn.Conv2d):
        def forward(self, images):
            raise RuntimeError(f"no images of {images.shape[2]}")

    with pytest.raises(ValueError, match=r"none of the sizes .* \(2, 3, 28, 28\): no images of 28\."):
        PrototypePoolingTrunk(Network(3, 4, 1))


class Sharing(Headed):
    """A network that runs the same module in front of its average and behind."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.shared(self.average(self.shared(self.body(images))).flatten(1))


@pytest.mark.parametrize("shared", [nn.Tanh, nn.Dropout])
def test_modules_that_run_on_both_sides_of_the_average_are_noticed(shared):
    """Dropping them would change the local features, and leaving them the average."""
    with pytest.raises(ValueError, match=r"candidates \['average'\] average feature maps, but what follows"):
        PrototypePoolingTrunk(Sharing(shared()))


def test_a_pool_of_a_fixed_size_at_the_end_has_to_be_named():
    """At larger sizes it leaves several positions, so that it may be a layer that makes maps smaller."""
    network = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.AvgPool2d(28))
    with pytest.raises(ValueError, match=r"'1' averages all local features of small images, but not of"):
        PrototypePoolingTrunk(network)
    assert PrototypePoolingTrunk(network, pool="1").pooling is network[1]


class DownsamplingByAverages(nn.Module):
    """At small sizes its last AvgPool2d(2) is global, although a convolution and the true pool follow."""

    def __init__(self, ends_in_function: bool = False) -> None:
        super().__init__()
        widths = (3, 4, 5, 6, 7, 8)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, padding=1),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                    nn.AvgPool2d(2, ceil_mode=True),
                )
                for a, b in itertools.pairwise(widths)
            )
        )
        self.neck = nn.Conv2d(8, 12, 1)
        self.act = nn.ReLU()
        self.pool = nn.Identity() if ends_in_function else nn.AdaptiveAvgPool2d(1)
        self.ends_in_function = ends_in_function
        self.fc = nn.Linear(12, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.pool(self.act(self.neck(self.stages(images))))
        return self.fc(maps.mean((2, 3)) if self.ends_in_function else maps.flatten(1))


def test_layers_behind_an_earlier_average_are_not_dropped():
    trunk = PrototypePoolingTrunk(DownsamplingByAverages())
    assert trunk.num_features == 12
    assert trunk.trunk.pool is trunk.pooling
    assert isinstance(trunk.trunk.neck, nn.Conv2d)
    with pytest.raises(ValueError, match=r"cannot tell where .* Candidates are"):
        PrototypePoolingTrunk(DownsamplingByAverages(ends_in_function=True))


@pytest.mark.parametrize("layer4", [True, False])
def test_resnets_that_were_cut(layer4):
    network = torchvision.models.resnet18()
    if not layer4:
        network.layer4 = nn.Identity()
    network.fc = nn.Identity()
    assert PrototypePoolingTrunk(network).num_features == (512 if layer4 else 256)


def test_an_average_over_quarters_is_no_global_average():
    network = torchvision.models.resnet18()
    network.avgpool = nn.AdaptiveAvgPool2d((2, 2))
    network.fc = nn.Linear(2048, 10)
    with pytest.raises(ValueError, match=r"Candidates are .*avgpool"):
        PrototypePoolingTrunk(network)
    assert isinstance(network.fc, nn.Linear)


def test_class_maps_are_no_local_features():
    with pytest.raises(
        ValueError, match=r"averages maps that 'classifier\.1' makes.*Candidates are .*classifier\.3"
    ):
        PrototypePoolingTrunk(torchvision.models.squeezenet1_1())


def squeezenet_of(layer: nn.Module) -> nn.Module:
    network = torchvision.models.squeezenet1_1()
    network.classifier[1] = layer
    return network


def squeezenet_of_pretrainedmodels() -> nn.Module:
    network = pretrainedmodels.squeezenet1_1(pretrained=None)
    network.last_conv = nn.Conv2d(512, 100, 1)
    return network


@pytest.mark.parametrize(
    ("build", "pool", "layer"),
    [
        (lambda: squeezenet_of(nn.Conv2d(512, 100, 1)), "classifier.3", "classifier.1"),
        (
            lambda: squeezenet_of(nn.Sequential(nn.Dropout(), nn.Conv2d(512, 100, 1))),
            "classifier.3",
            "classifier.1.1",
        ),
        (
            lambda: nn.Sequential(squeezenet_of(nn.Conv2d(512, 100, 1)), nn.Linear(100, 64)),
            "0.classifier.3",
            "0.classifier.1",
        ),
        (squeezenet_of_pretrainedmodels, "avgpool", "last_conv"),
    ],
)
def test_maps_of_other_classes_are_no_local_features(build, pool, layer):
    """Although the network says that it has the library's number of them."""
    network = build()
    with pytest.raises(ValueError, match=rf"{pool!r} averages maps that {layer!r} makes.*Candidates are"):
        PrototypePoolingTrunk(network)
    assert PrototypePoolingTrunk(network, pool=pool).num_features == 100


def test_maps_of_as_many_classes_as_a_network_says_are_no_local_features():
    network = nn.Sequential(*convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.num_classes = 12
    with pytest.raises(ValueError, match="averages maps of its 12 classes"):
        PrototypePoolingTrunk(network)


def test_a_head_in_front_of_the_average_may_be_the_backbone():
    assert PrototypePoolingTrunk(timm.create_model("selecsls42b", num_classes=0)).num_features == 1024


def test_a_class_token_among_the_tokens_is_refused():
    class WithClassToken(Tokens):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = super().forward(images)
            return torch.cat([tokens[:, :1], tokens], dim=1)

    with pytest.raises(ValueError, match="cannot tell where"):
        PrototypePoolingTrunk(WithClassToken())


@pytest.mark.parametrize("size", [32, None])
@pytest.mark.parametrize("num_prefix_tokens", [1, 4, 5, 9])
def test_prefix_tokens_that_a_network_returns_are_not_pooled(num_prefix_tokens, size):
    """Not even where they and the patches are as many as a larger grid has."""
    network = WithPrefixTokens(num_prefix_tokens, size).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.body(images).mean((2, 3))
        output = PrototypePoolingTrunk(network)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_tokens_that_may_be_prefix_tokens_are_refused():
    """Of 25 tokens of which 9 are said to stand in front, all or 16 may be patches."""
    message = r"says that it has 9 prefix tokens.*25 tokens.*num_prefix_tokens = 0"
    within = nn.Sequential(WithPrefixTokens(9, 32), nn.LayerNorm(12))
    within[0].body = nn.Sequential(*convolutions(), nn.MaxPool2d(2))
    for network in (WithPrefixTokens(9), within):
        with pytest.raises(ValueError, match=message):
            PrototypePoolingTrunk(network)


def test_patches_that_are_no_squares_are_not_mixed_with_a_class_token():
    """2 × 4 patches and a class token are as many as 3 × 3."""
    network = timm.models.VisionTransformer(
        img_size=32, patch_size=(16, 8), embed_dim=16, depth=1, num_heads=2, num_classes=0, global_pool=""
    )
    with pytest.raises(ValueError, match=r"says that it has 1 prefix token.*9 tokens"):
        PrototypePoolingTrunk(network)


@pytest.mark.parametrize("size", [32, None])
def test_tokens_from_which_a_network_leaves_out_those_in_front_are_pooled_where_that_shows(size):
    network = WithPrefixTokens(1, size, leaves_them_out=True).eval()
    if size is not None:
        with pytest.raises(ValueError, match=r"says that it has 1 prefix token.*64 tokens"):
            PrototypePoolingTrunk(network)
        network.num_prefix_tokens = 0
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images).mean(1)
        output = PrototypePoolingTrunk(network)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_register_tokens_are_not_pooled_where_all_tokens_are_a_square():
    network = timm.create_model(
        "vit_tiny_patch16_224", reg_tokens=4, img_size=32, num_classes=0, global_pool=""
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)[:, 5:].mean(1)
        output = PrototypePoolingTrunk(network)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_flattened_maps_are_not_taken_for_tokens():
    with pytest.raises(ValueError, match=r"depends on the images' size\. Candidates are .*'body'"):
        PrototypePoolingTrunk(FlattenedMaps())


@pytest.mark.parametrize("options", [{"reg_tokens": 4}, {"global_pool": "map"}, {"global_pool": "avg"}, {}])
@pytest.mark.parametrize("is_headless", [True, False])
def test_vision_transformers_give_their_patch_tokens(options, is_headless):
    """Whatever they classify by; without a head they return all tokens."""
    headless = {"num_classes": 0, "global_pool": ""} if is_headless else {}
    network = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, **(options | headless)
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.forward_features(images)[:, network.num_prefix_tokens :].mean(1)
        output = PrototypePoolingTrunk(network)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_a_transformer_that_returns_maps_channels_last():
    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        **{"num_classes": 0, "global_pool": "", "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1)},
    ).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = network(images).mean((1, 2))
        trunk = PrototypePoolingTrunk(network)
        output = trunk(images)
        plain = trunk.unwrap()(images)
    assert trunk.num_features == 32
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    assert torch.equal(plain, output)


def test_vgg_is_told_by_name_only():
    network = torchvision.models.alexnet()
    with pytest.raises(ValueError, match=r"avgpool \(AdaptiveAvgPool2d\)"):
        PrototypePoolingTrunk(network)
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    with pytest.raises(ValueError, match="must be on a real device"):
        PrototypePoolingTrunk(network)


def test_scripting_says_what_to_do():
    trunk = PrototypePoolingTrunk(own_sequential()).eval()
    for module in (trunk, nn.Sequential(trunk), trunk.trunk):
        with pytest.raises(TypeError, match=r"unwrap\(\)"):
            torch.jit.script(module)
    images = torch.randn(2, 3, 16, 16)
    expected = trunk(images)
    assert torch.equal(torch.jit.script(trunk.unwrap())(images), expected)


def test_pool_by_name():
    network = torchvision.models.resnet18()
    reference = nn.Sequential(*list(copy.deepcopy(network).children())[:-1], nn.Flatten()).eval()
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES, pool="avgpool").eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(trunk(images), reference(images))
    assert isinstance(network.avgpool, PrototypePooling)
    assert isinstance(network.fc, nn.Identity)


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        ("avrage", ValueError, r"pool must be a module of the trunk \(Headed\), got 'avrage'; .*'average'"),
        ("", ValueError, r"pool must be a module of the trunk \(Headed\), got ''"),
        ("head.0", ValueError, r"pool='head\.0' .* got an input of shape \(2, 12\)"),
        ("body.0", ValueError, r"pool='body\.0' .* must be its last pool, got one whose output"),
        ("unused", ValueError, r"pool='unused' .* must run when the trunk does"),
        (nn.AdaptiveAvgPool2d(1), TypeError, "pool must be the dotted name"),
    ],
)
def test_wrong_names_of_pools(pool, error, message):
    network = Headed()
    network.unused = nn.AdaptiveAvgPool2d(1)
    state = list(network.state_dict())
    if pool == "body.0":
        network.treat = F.normalize
    with pytest.raises(error, match=message):
        PrototypePoolingTrunk(network, pool=pool)
    assert list(network.state_dict()) == state


def test_wrong_trunks():
    network = own_sequential()
    trunk = PrototypePoolingTrunk(network, NUM_PROTOTYPES)
    for wrapped_already in (trunk, network, nn.Sequential(trunk, nn.Linear(12, 4))):
        with pytest.raises(ValueError, match="wrapped already"):
            PrototypePoolingTrunk(wrapped_already)
    with pytest.raises(TypeError, match=r"trunk must be a torch\.nn\.Module, got function"):
        PrototypePoolingTrunk(F.relu)
    with pytest.raises(ValueError, match="must return one tensor, got dict"):
        PrototypePoolingTrunk(ReturningDictionary())
    with pytest.raises(ValueError, match=r"one tensor, got list\. Candidates are .*'model\.patch_embed'"):
        PrototypePoolingTrunk(timm.create_model("test_vit", features_only=True))
    with pytest.raises(ValueError, match="takes images of none of the sizes"):
        PrototypePoolingTrunk(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
