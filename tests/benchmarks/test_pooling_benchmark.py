import pytest
import torch

from pml_xbml.trunks import PrototypePooling

BATCH_SIZE, CHANNELS, SIDE, NUM_PROTOTYPES = 32, 2048, 7, 64
NUM_POSITIONS = SIDE * SIDE


@pytest.fixture
def feature_maps(device):
    return torch.randn(BATCH_SIZE, CHANNELS, SIDE, SIDE, device=device).relu_().requires_grad_()


def forward_and_backward(pooling, feature_maps):
    average_gradient = torch.randn(BATCH_SIZE, CHANNELS, device=feature_maps.device)
    histogram_gradient = torch.randn(BATCH_SIZE, NUM_PROTOTYPES, device=feature_maps.device)

    def step():
        average = pooling(feature_maps)
        torch.autograd.grad(
            (average, pooling.histograms),
            (feature_maps, pooling.prototypes),
            (average_gradient, histogram_gradient),
        )

    return step


def hand_written_floor(feature_maps):
    """The three matrix products, the average and its gradient, each as the one call that does it fastest."""
    features = feature_maps.detach().flatten(2)
    prototypes = torch.randn(NUM_PROTOTYPES, CHANNELS, device=features.device)
    left = prototypes.expand(BATCH_SIZE, -1, -1)
    transposed_left = prototypes.T.contiguous().expand(BATCH_SIZE, -1, -1)
    gradient = torch.randn(BATCH_SIZE, NUM_PROTOTYPES, NUM_POSITIONS, device=features.device)
    spread = torch.randn(BATCH_SIZE, CHANNELS, 1, device=features.device).expand_as(features)
    zeros = torch.zeros_like(prototypes)

    @torch.no_grad()
    def step():
        torch.bmm(left, features)
        torch.nn.functional.adaptive_avg_pool2d(feature_maps, 1)
        torch.baddbmm(spread, transposed_left, gradient)
        torch.addbmm(zeros, gradient, features.mT)

    return step


def differentiated_floor(feature_maps):
    """The product and the average, differentiated by autograd: no norms, no softmax, no histograms."""
    prototypes = torch.randn(NUM_PROTOTYPES, CHANNELS, device=feature_maps.device, requires_grad=True)
    gradient = torch.randn(BATCH_SIZE, NUM_PROTOTYPES, NUM_POSITIONS, device=feature_maps.device)
    average_gradient = torch.randn(BATCH_SIZE, CHANNELS, 1, 1, device=feature_maps.device)

    def step():
        products = prototypes @ feature_maps.flatten(2)
        average = torch.nn.functional.adaptive_avg_pool2d(feature_maps, 1)
        torch.autograd.grad((products, average), (prototypes, feature_maps), (gradient, average_gradient))

    return step


@pytest.mark.parametrize("floor", [hand_written_floor, differentiated_floor])
def test_training(ratio, device, feature_maps, floor):
    pooling = PrototypePooling(CHANNELS, NUM_PROTOTYPES).to(device)
    ratio(
        "PrototypePooling, forward + backward",
        forward_and_backward(pooling, feature_maps),
        floor.__name__.replace("_", " "),
        floor(feature_maps),
        at_most=1.15,
        rounds=60,
    )


def test_compiled_training(ratio, device, feature_maps):
    pooling = PrototypePooling(CHANNELS, NUM_PROTOTYPES).to(device)
    compiled = torch.compile(pooling, fullgraph=True)
    ratio(
        "compiled PrototypePooling, forward + backward",
        forward_and_backward(compiled, feature_maps),
        "not compiled",
        forward_and_backward(pooling, feature_maps),
        at_most=1.5,
        rounds=30,
    )


def test_evaluation(ratio, device, feature_maps):
    pooling = PrototypePooling(CHANNELS, NUM_PROTOTYPES).to(device).eval()
    average = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def repeated(module):
        @torch.inference_mode()
        def run():
            for _ in range(10):
                module(feature_maps)

        return run

    ratio(
        "PrototypePooling in evaluation mode",
        repeated(pooling),
        "AdaptiveAvgPool2d(1)",
        repeated(average),
        at_most=1.02,
        rounds=100,
    )
