import pytest
import torch
import torchvision

from pml_xbml.trunks import PrototypePoolingTrunk


@pytest.fixture
def factory(getter):
    return getter.get("factory", class_name="ModelFactory", params={"getter": getter})


def test_trunks_with_and_without_prototypes_have_the_same_features(factory):
    images = torch.randn(2, 3, 64, 64)
    network = {"shufflenet_v2_x0_5": {"weights": None}}
    for name in (network, {"resnet18": {}}):
        torch.manual_seed(1)
        plain = factory.create(named_specs={"trunk": name}, subset="trunk").eval()
        size = factory.base_model_output_size
        torch.manual_seed(1)
        wrapped = factory.create(
            named_specs={"trunk": {"PrototypePoolingTrunk": {"trunk": name, "num_prototypes": 3}}},
            subset="trunk",
        ).eval()
        assert isinstance(wrapped, PrototypePoolingTrunk)
        assert wrapped.prototypes.shape == (3, size)
        assert plain(images).shape == (2, size)
        torch.testing.assert_close(plain(images), wrapped(images))


def test_a_network_without_fc_ends_at_its_average(factory):
    torch.manual_seed(1)
    plain = factory.create(named_specs={"trunk": {"mobilenet_v3_small": {}}}, subset="trunk").eval()
    torch.manual_seed(1)
    network = torchvision.models.mobilenet_v3_small().eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(plain(images), network.features(images).mean((2, 3)))
    embedder = factory.create(named_specs={"embedder": {"MLP": {"layer_sizes": [5]}}}, subset="embedder")
    assert embedder.last_linear.in_features == 576


def test_transforms_know_the_images_of_the_wrapped_network(factory, getter):
    class Network(torchvision.models.ResNet):
        def __init__(self):
            super().__init__(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
            self.mean, self.std, self.input_space, self.input_range = [9, 9, 9], [1, 1, 1], "BGR", [0, 255]

    getter.register("model", Network)
    trunk = factory.create(
        named_specs={"trunk": {"PrototypePoolingTrunk": {"trunk": {"Network": {}}, "num_prototypes": 2}}},
        subset="trunk",
    )
    assert (trunk.mean, trunk.input_space, trunk.input_range) == ([9, 9, 9], "BGR", [0, 255])


def test_a_prototype_pooling_trunk_without_a_network_is_refused(factory):
    with pytest.raises(ValueError, match="PrototypePoolingTrunk needs the network that it wraps"):
        factory.create(
            named_specs={"trunk": {"PrototypePoolingTrunk": {"num_prototypes": 2}}}, subset="trunk"
        )
