"""The fused node against the plain formulas of ``functional``."""

import pytest
import torch

from pml_xbml import functional

SIMILARITIES = pytest.mark.parametrize("similarity", functional.SIMILARITIES)


def double(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def plain(feature_maps, prototypes, temperature, similarity):
    features = feature_maps.flatten(2)
    return features.mean(2), functional.histograms(features.mT, prototypes, temperature, similarity)


LAYOUTS = {
    "map": lambda shape: double(*shape),
    "channels last": lambda shape: double(*shape).contiguous(memory_format=torch.channels_last),
    "tokens": lambda shape: double(shape[0], shape[2] * shape[3], shape[1]).mT,
    "every other position": lambda shape: double(*shape[:3], 2 * shape[3])[..., ::2],
    "empty batch": lambda shape: double(0, *shape[1:]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@SIMILARITIES
@layouts
@pytest.mark.parametrize("gradients", ["both", "average", "histograms"])
def test_equals_the_plain_formulas_with_their_gradients(similarity, layout, gradients):
    feature_maps = LAYOUTS[layout]((3, 5, 2, 3)).requires_grad_()
    prototypes = double(4, 5, requires_grad=True)
    upstream = double(len(feature_maps), 5), double(len(feature_maps), 4)
    results = []
    for function in (functional.average_and_histograms, plain):
        outputs = function(feature_maps, prototypes, 0.2, similarity)
        chosen = {"both": slice(None), "average": slice(0, 1), "histograms": slice(1, 2)}[gradients]
        loss = sum(
            (value * weight).sum() for value, weight in list(zip(outputs, upstream, strict=True))[chosen]
        )
        inputs = (feature_maps, prototypes)
        results.append((outputs, torch.autograd.grad(loss, inputs, materialize_grads=True)))
    torch.testing.assert_close(results[0], results[1])


@SIMILARITIES
def test_passes_gradcheck(similarity):
    assert torch.autograd.gradcheck(
        lambda features, prototypes: functional.average_and_histograms(features, prototypes, 0.3, similarity),
        (double(2, 3, 4, requires_grad=True), double(5, 3, requires_grad=True)),
    )


@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_average_is_that_of_an_adaptive_pool_to_the_bit(layout, dtype):
    feature_maps = LAYOUTS[layout]((3, 50, 7, 9)).to(dtype)
    average, _ = functional.average_and_histograms(feature_maps, double(4, 50))
    if feature_maps.ndim == 3:
        assert torch.equal(average, feature_maps.mT.mean(1))
    else:
        assert torch.equal(average, torch.nn.AdaptiveAvgPool2d(1)(feature_maps).flatten(1))
    assert average.dtype == dtype


def test_the_average_carries_the_prototypes_with_a_gradient_of_zero():
    prototypes = double(4, 5, requires_grad=True)
    features = double(3, 5, 6, requires_grad=True)
    average, _ = functional.average_and_histograms(features, prototypes)
    average.sum().backward()
    assert torch.equal(prototypes.grad, torch.zeros_like(prototypes))
    assert torch.equal(features.grad, torch.full_like(features, 1 / 6))


@SIMILARITIES
def test_the_gradient_of_the_average_alone_does_not_go_through_the_histograms(similarity):
    """An infinite feature has no histogram, and would leave NaN."""
    features, prototypes = double(3, 5, 6), double(4, 5, requires_grad=True)
    features[0, 0, 0] = torch.inf
    features.requires_grad_()
    average, _ = functional.average_and_histograms(features, prototypes, 0.1, similarity)
    gradients = torch.autograd.grad(average.sum(), (features, prototypes))
    assert torch.equal(gradients[0], torch.full_like(features, 1 / 6))
    assert torch.equal(gradients[1], torch.zeros_like(prototypes))


@SIMILARITIES
def test_features_without_gradient_get_none(similarity):
    features, prototypes = double(3, 5, 6), double(4, 5, requires_grad=True)
    upstream = double(3, 4)
    for function in (functional.average_and_histograms, plain):
        _, z = function(features, prototypes, 0.2, similarity)
        (z * upstream).sum().backward()
    both = prototypes.grad.clone()
    prototypes.grad = None
    (plain(features, prototypes, 0.2, similarity)[1] * upstream).sum().backward()
    torch.testing.assert_close(both, 2 * prototypes.grad)


@SIMILARITIES
def test_frozen_prototypes_leave_the_gradient_of_the_features(similarity):
    features, prototypes, upstream = double(3, 5, 6, requires_grad=True), double(4, 5), double(3, 4)
    gradients = []
    for function in (functional.average_and_histograms, plain):
        _, z = function(features, prototypes, 0.2, similarity)
        gradients.append(torch.autograd.grad(z, features, upstream)[0])
    torch.testing.assert_close(*gradients)


def test_refuses_a_second_derivative():
    features, prototypes = double(3, 5, 6, requires_grad=True), double(4, 5)
    _, z = functional.average_and_histograms(features, prototypes)
    (gradient,) = torch.autograd.grad(z.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@SIMILARITIES
def test_the_backward_is_float32_under_autocast(similarity):
    features = torch.randn(3, 5, 6, requires_grad=True)
    prototypes = torch.randn(4, 5, requires_grad=True)
    upstream = torch.randn(3, 4)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            _, z = functional.average_and_histograms(features, prototypes, 0.2, similarity)
            gradients.append(torch.autograd.grad(z, (features, prototypes), upstream))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


class TestHalfPrecision:
    @SIMILARITIES
    @pytest.mark.parametrize("norm", [1e-4, 4e-3, 1, 318, 1e4])
    def test_histograms_and_gradients_are_those_of_float32(self, similarity, norm):
        directions = functional.l2_normalize(torch.randn(2, 6, 16)).mT
        features = (norm * directions).half().requires_grad_()
        prototypes = (norm * functional.l2_normalize(torch.randn(4, 16))).requires_grad_()
        # The smaller the features, the larger the gradient that a GradScaler has to fit into float16.
        scale, temperature = min(norm, 1) ** 2, 0.1 if similarity == "cosine" else norm**2
        results = []
        for inputs in (features, features.float()):
            _, z = functional.average_and_histograms(inputs, prototypes, temperature, similarity)
            results.append((z, *torch.autograd.grad(scale * z[:, 0].sum(), (features, prototypes))))
        assert all(values.isfinite().all() for values in results[0])
        torch.testing.assert_close(results[0], results[1])
        assert results[0][1].any()

    @SIMILARITIES
    def test_plain_histograms_are_finite(self, similarity):
        for norm in (1e-4, 4e-3, 318, 1e4):
            features = (norm * functional.l2_normalize(torch.randn(2, 6, 16))).half()
            prototypes = (norm * functional.l2_normalize(torch.randn(4, 16))).half()
            z = functional.histograms(features, prototypes, 0.1, similarity)
            torch.testing.assert_close(z.sum(1), torch.ones(2))


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan"), float("inf")])
def test_refuses_a_temperature_that_is_not_positive_and_finite(temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive and finite, got {temperature}"):
        functional.average_and_histograms(torch.ones(1, 1, 1), torch.ones(1, 1), temperature)


def test_refuses_an_unknown_similarity():
    with pytest.raises(ValueError, match="cosine, dot, got 'euclid'"):
        functional.average_and_histograms(torch.ones(1, 1, 1), torch.ones(1, 1), similarity="euclid")
