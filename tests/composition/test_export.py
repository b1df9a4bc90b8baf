import copy
import warnings
from collections import Counter

import onnxruntime
import pytest
import torch
import torchvision

from pml_xbml.trunks import PrototypePoolingTrunk


@pytest.fixture(params=["sequential", "resnet"])
def networks(request):
    """A network that ends in a plain average, and the same one wrapped, both in evaluation mode."""
    if request.param == "sequential":
        network = torch.nn.Sequential(
            *(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()),
            *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        )
    else:
        network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
        network.fc = torch.nn.Identity()
    wrapped = PrototypePoolingTrunk(copy.deepcopy(network), num_prototypes=5)
    return network.eval(), wrapped.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def operations(program):
    """By name, in order; the decompositions drop the flattening of what is flat, which ResNet ends in."""
    graph = program.run_decompositions().graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def test_torch_export_gives_the_graph_of_the_plain_average(networks, images):
    plain, wrapped = (torch.export.export(network, (images,)) for network in networks)
    assert operations(wrapped) == operations(plain)
    torch.testing.assert_close(wrapped.module()(images), networks[0](images), rtol=0, atol=0)


def test_onnx_export_gives_the_graph_of_the_plain_average(networks, images):
    plain, wrapped = (exported(network, images) for network in networks)
    assert [node.op_type for node in wrapped.graph.node] == [node.op_type for node in plain.graph.node]
    assert Counter(size(weight) for weight in wrapped.graph.initializer) == Counter(
        size(weight) for weight in plain.graph.initializer
    )
    session = onnxruntime.InferenceSession(wrapped.SerializeToString())
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(embeddings), networks[0](images).detach(), rtol=1e-4, atol=1e-5
    )


def size(weight):
    return tuple(weight.dims)


def exported(network, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(network, (images,), dynamo=True, optimize=True, verbose=False)
    return program.model_proto
