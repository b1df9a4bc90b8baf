"""Records of the fit: how much of a half its own prototypes explain, and how much the other half's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional


class ExpressionStatistics(NamedTuple):
    """Scalars. R² = 1 − ‖Y_k − Ŷ_k‖² / ‖Y_k − ȳ_k‖²; with an intercept Y_k − ȳ_k takes the place of Y_k.

    Attributes:
        fit_r2: R² of a half expressed by its own prototypes, the mean of the two; 1 for a perfect fit.
        transfer_r2: R² of a half expressed by the other's prototypes, the mean of the two. At 0 it is no
            better than the half's mean, and what it lies below ``fit_r2`` does not transfer to other classes.
        condition_number: of the system that is solved, ZᵀZ + εI or ZZᵀ + εI; the larger one of the halves.
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
    intercept: bool = False,
) -> ExpressionStatistics:
    """Measures one batch.

    Args:
        histograms: Z, (N, m), as they enter the fit.
        embeddings: Y, (N, D), as they enter the fit.
        ridge: ε > 0.
        halves: which samples belong to which half.
        intercept: of the fit.

    Returns:
        The statistics, in float64.
    """
    fits = [
        _Fit(sources, targets, ridge, intercept)
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

    def __init__(self, histograms: Tensor, embeddings: Tensor, ridge: float, intercept: bool) -> None:
        self.histograms, self.embeddings = histograms, embeddings
        self.prototypes = functional.ridge_fit(histograms, embeddings, ridge, intercept=intercept)
        self.intercept = intercept
        self.mean = histograms.mean(0) if intercept else torch.zeros_like(histograms[0])
        self.ridge = torch.as_tensor(ridge)
        if intercept:
            variance = (histograms - self.mean).square().sum(1).mean()
            self.ridge = ridge * torch.where(variance > 0, variance, 1)

    def r2(self, other: _Fit) -> Tensor:
        """How much of the other half's variance is explained; 0 where it has none."""
        expressed = functional.express(other.histograms - self.mean, self.prototypes)
        deviations = other.embeddings - other.embeddings.mean(0)
        residual = (deviations if self.intercept else other.embeddings) - expressed
        variation = deviations.square().sum()
        return torch.where(variation > 0, 1 - residual.square().sum() / variation, 0)

    def condition_number(self) -> Tensor:
        eigenvalues = torch.linalg.svdvals(self.histograms - self.mean).square() + self.ridge
        return eigenvalues[0] / eigenvalues[-1]
