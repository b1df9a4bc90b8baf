"""Faint features in float16: a network without biases, whose local features have norms of about 1/200."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling

NUM_STEPS = 4


def backbone():
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in zip((3, 16, 16, 32, 32, 64), (16, 16, 32, 32, 64, 64), strict=True):
        convolution = torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        torch.nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


def scaled_to_faint_features(network, images):
    """The last convolution, scaled so that the features' norms lie around 1/150."""
    with torch.no_grad():
        norms = torch.linalg.vector_norm(network(images), dim=1)
        network[-2].weight *= 0.007 / norms.mean()
        return torch.linalg.vector_norm(network(images), dim=1)


def num_skipped_steps(with_prototypes):
    network, images = backbone(), torch.randn(8, 3, 6, 6)
    norms = scaled_to_faint_features(network, images)
    assert norms.quantile(0.05) > 2e-3
    assert norms.quantile(0.95) < 2e-2
    labels = torch.arange(8) // 2
    pooling = PrototypePooling(64, 8) if with_prototypes else torch.nn.AdaptiveAvgPool2d(1)
    loss = CrossBatchPrototypeLoss(ContrastiveLoss(), pooling, 0.1) if with_prototypes else ContrastiveLoss()
    model = torch.nn.Sequential(network, pooling, torch.nn.Flatten(), torch.nn.Linear(64, 16, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    skipped = 0
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            embeddings = model(images)
        value = loss(embeddings.float(), labels)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < scale
    return skipped


@pytest.mark.slow
@pytest.mark.parametrize("with_prototypes", [False, True])
def test_no_step_is_skipped(with_prototypes):
    assert num_skipped_steps(with_prototypes) == 0
