"""Records of the fit: how much of a half its own prototypes explain, and how much the other half's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional


class ExpressionStatistics(NamedTuple):
    """Scalars. With R² = 1 − ‖Y_k − Ŷ_k‖² / ‖Y_k − ȳ_k‖², a mean over the two halves:

    Attributes:
        fit_r2: R² of a half expressed by its own prototypes, Ŷ_k = Z_k A_k; 1 for a perfect fit.
        transfer_r2: R² of a half expressed by the other's prototypes. 0 is no better than the mean, and what
            it lies below ``fit_r2`` does not transfer to other classes.
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
    pairs = list(zip(halves.split(histograms.double()), halves.split(embeddings.double()), strict=True))
    fitted = [functional.ridge_fit(*pair, ridge) for pair in pairs]
    fit_r2 = [_r2(*pair, own) for pair, own in zip(pairs, fitted, strict=True)]
    transfer_r2 = [_r2(*pair, other) for pair, other in zip(pairs, reversed(fitted), strict=True)]
    condition_number = [_condition_number(sources, ridge) for sources, _ in pairs]
    return ExpressionStatistics(
        torch.stack(fit_r2).mean(), torch.stack(transfer_r2).mean(), torch.stack(condition_number).max()
    )


def _r2(histograms: Tensor, embeddings: Tensor, fitted_prototypes: Tensor) -> Tensor:
    """0 for embeddings that are all alike, which have no variance to explain."""
    unexplained = (embeddings - functional.express(histograms, fitted_prototypes)).square().sum()
    variation = (embeddings - embeddings.mean(0)).square().sum()
    return torch.where(variation > 0, 1 - unexplained / torch.where(variation > 0, variation, 1), 0)


def _condition_number(histograms: Tensor, ridge: float) -> Tensor:
    eigenvalues = torch.linalg.svdvals(histograms).square() + ridge
    return eigenvalues[0] / eigenvalues[-1]
