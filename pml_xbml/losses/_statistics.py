"""Records of the fit: how much of a half its own prototypes explain, and how much the other half's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional


class ExpressionStatistics(NamedTuple):
    """Scalars. R² = 1 − ‖Y_k − ȳ_k − Ŷ_k‖² / ‖Y_k − ȳ_k‖², see :func:`pml_xbml.functional.transfer_r2`.

    Attributes:
        fit_r2: R² of a half expressed by its own prototypes, the mean of the two; 1 for a perfect fit.
        transfer_r2: R² of a half expressed by the other's prototypes, the mean of the two. At 0 it is no
            better than the half's mean, and what it lies below ``fit_r2`` does not transfer to other classes.
        condition_number: of the system that is solved, ZᵀZ + αI or ZZᵀ + αI with the histograms' deviations Z
            and their ridge α; the larger one of the halves.
    """

    fit_r2: Tensor
    transfer_r2: Tensor
    condition_number: Tensor


@torch.no_grad()
def expression_statistics(
    histograms: Tensor,
    embeddings: Tensor,
    ridge: float,
    halves: functional.Halves = functional.CUT_IN_THE_MIDDLE,
) -> ExpressionStatistics:
    """Measures one batch.

    Args:
        histograms: Z, (N, m), as they enter the fit.
        embeddings: Y, (N, D), as they enter the fit.
        ridge: ε > 0.
        halves: which samples belong to which half.

    Returns:
        The statistics, in float64.
    """
    fits = [
        _Fit(sources, targets, ridge)
        for sources, targets in zip(
            halves.split(histograms.double()), halves.split(embeddings.double()), strict=True
        )
    ]
    return ExpressionStatistics(
        torch.stack([fit.r2(fit) for fit in fits]).mean(),
        torch.stack([fit.r2(other) for fit, other in zip(fits, reversed(fits), strict=True)]).mean(),
        torch.stack([fit.condition_number() for fit in fits]).max(),
    )


class _Fit:
    """The prototypes that are fitted to a half."""

    def __init__(self, histograms: Tensor, embeddings: Tensor, ridge: float) -> None:
        self.prototypes = functional.ridge_fit(histograms, embeddings, ridge, intercept=True)
        self.histograms, self.embeddings = histograms, embeddings
        self.mean = histograms.mean(0)
        variance = (histograms - self.mean).square().sum(1).mean()
        self.ridge = ridge * torch.where(variance > 0, variance, 1)

    def r2(self, other: _Fit) -> Tensor:
        """How much of the other half's variance is explained; 0 where it has none."""
        expressed = functional.express(other.histograms - self.mean, self.prototypes)
        deviations = other.embeddings - other.embeddings.mean(0)
        variation = deviations.square().sum()
        return torch.where(variation > 0, 1 - (deviations - expressed).square().sum() / variation, 0)

    def condition_number(self) -> Tensor:
        eigenvalues = torch.linalg.svdvals(self.histograms - self.mean).square() + self.ridge
        return eigenvalues[0] / eigenvalues[-1]
