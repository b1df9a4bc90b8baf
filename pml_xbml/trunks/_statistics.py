"""What the records tell of a pooling: how many prototypes are in use, and how well they cover."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


def perplexity(histograms: Tensor) -> Tensor:
    """The number of prototypes that a histogram is spread over, exp(−Σ_i z_i log z_i).

    Args:
        histograms: (..., m), on the simplex.

    Returns:
        (...), from 1 (a single prototype) to m (all alike).
    """
    return torch.special.entr(histograms).sum(-1).exp()


def cover_radius_and_gap(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of Lemma 1 for a batch: gap ≤ δ.

        δ = max_j ‖ν̂_a(j) − x̂_j‖,    gap = max over images ‖Σ_i z_i ν̂_i − (1/n) Σ_j x̂_j‖

    with the unsmoothed z of Claim 1. All vectors are divided by their norms, which the lemma needs: only
    among vectors of equal norm the best match is the nearest prototype. Features of norm zero are left out.

    Args:
        features: local features, (B, n, C).
        prototypes: (m, C).

    Returns:
        The cover radius δ in [0, 2], and the largest gap of an image, both scalars.
    """
    features, prototypes = (
        functional.l2_normalize(features.float()),
        functional.l2_normalize(prototypes.float()),
    )
    has_direction = features.any(-1)
    nearest = prototypes[functional.hard_assignments(features, prototypes)]
    differences = (nearest - features) * has_direction.unsqueeze(-1)
    num_directions = has_direction.sum(-1, keepdim=True).clamp(min=1)
    gaps = torch.linalg.vector_norm(differences.sum(1) / num_directions, dim=-1)
    return torch.linalg.vector_norm(differences, dim=-1).max(), gaps.max()


def batches_since_chosen(counts: Tensor, assigned: Tensor) -> Tensor:
    """Counts on, for each prototype, the batches since a local feature was last assigned to it.

    Args:
        counts: (m,) integers, before this batch.
        assigned: the prototypes that the batch's features match best, integers of any shape.

    Returns:
        (m,) integers.
    """
    counts = counts + 1
    return counts.index_fill(0, assigned.flatten(), 0)
