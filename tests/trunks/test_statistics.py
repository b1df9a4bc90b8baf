import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy

from pml_xbml.trunks._statistics import batches_since_chosen, cover_radius_and_gap, perplexity


def test_perplexity_is_the_exponential_of_the_entropy():
    histograms = torch.rand(5, 7, dtype=torch.float64)
    histograms /= histograms.sum(1, keepdim=True)
    assert perplexity(histograms).numpy() == pytest.approx(np.exp(entropy(histograms.numpy(), axis=1)))
    assert perplexity(torch.tensor([0.0, 1.0, 0.0])) == 1
    assert perplexity(torch.full((8,), 1 / 8)) == pytest.approx(8)


def test_cover_radius_and_gap_are_those_of_a_loop():
    features, prototypes = torch.randn(3, 10, 4), torch.randn(5, 4)
    features[1, 2] = 0
    unit = prototypes.numpy() / np.linalg.norm(prototypes.numpy(), axis=1, keepdims=True)
    radii, gaps = [], []
    for image in features.numpy():
        vectors = image[np.linalg.norm(image, axis=1) > 0]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        distances = cdist(vectors, unit)
        radii.append(distances.min(1).max())
        gaps.append(np.linalg.norm(unit[distances.argmin(1)].mean(0) - vectors.mean(0)))
    radius, gap = cover_radius_and_gap(features, prototypes)
    assert radius.item() == pytest.approx(max(radii), rel=1e-5)
    assert gap.item() == pytest.approx(max(gaps), rel=1e-5)
    assert gap <= radius


def test_silent_features_give_zeros():
    assert cover_radius_and_gap(torch.zeros(2, 3, 4), torch.randn(5, 4)) == (0, 0)


def test_batches_since_chosen():
    counts = torch.zeros(4, dtype=torch.long)
    for assigned in ([[0, 1]], [[1, 1]], [[3, 0]]):
        counts = batches_since_chosen(counts, torch.tensor(assigned))
    assert counts.tolist() == [0, 1, 3, 0]
