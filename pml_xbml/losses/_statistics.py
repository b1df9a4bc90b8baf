"""What the records tell of the fit: how well a half is expressed by its own prototypes and by the other's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional


class ExpressionStatistics(NamedTuple):
    """Scalars; errors are means over the two halves.

    Attributes:
        fit_error: ‖Z_k A_k − Y_k‖ / ‖Y_k‖, a half expressed by its own prototypes.
        expression_error: ‖Z_k A_l − Y_k‖ / ‖Y_k‖, a half expressed by the other's.
        transfer_gap: the second less the first: what does not transfer to other classes.
        condition_number: of the system that is solved, ZᵀZ + εI or ZZᵀ + εI; the larger one of the halves.
    """

    fit_error: Tensor
    expression_error: Tensor
    transfer_gap: Tensor
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
    fit_error = torch.stack([_relative_error(*pair, own) for pair, own in zip(pairs, fitted, strict=True)])
    expression_error = torch.stack(
        [_relative_error(*pair, other) for pair, other in zip(pairs, reversed(fitted), strict=True)]
    )
    condition_number = torch.stack([_condition_number(pair[0], ridge) for pair in pairs])
    return ExpressionStatistics(
        fit_error.mean(),
        expression_error.mean(),
        (expression_error - fit_error).mean(),
        condition_number.max(),
    )


def _relative_error(histograms: Tensor, embeddings: Tensor, fitted_prototypes: Tensor) -> Tensor:
    residual = functional.express(histograms, fitted_prototypes) - embeddings
    smallest = torch.finfo(embeddings.dtype).tiny
    return torch.linalg.matrix_norm(residual) / torch.linalg.matrix_norm(embeddings).clamp(min=smallest)


def _condition_number(histograms: Tensor, ridge: float) -> Tensor:
    eigenvalues = torch.linalg.svdvals(histograms).square() + ridge
    return eigenvalues[0] / eigenvalues[-1]
