"""Samples expressed with prototypes fitted to others: ridge regression and prediction at once.

For each of a few independent fits: F (N, m) and R (N, D) are the histograms and embeddings that it is fitted
to, E (L, m) the histograms that it expresses, α its ridge, and

    Ŷ = E A,    A = (FᵀF + αI)⁻¹ FᵀR = Fᵀ (FFᵀ + αI)⁻¹ R

Primal form, taken for N > m, with G = FᵀF + αI and T = F G⁻¹, so that A = TᵀR:

    ∂A = Eᵀ ∂Ŷ,    B = G⁻¹ ∂A,    ∂R = T ∂A,    ∂E = ∂Ŷ Aᵀ
    ∂F = R Bᵀ − F (A Bᵀ + B Aᵀ),    ∂α = −⟨A, B⟩

(∂R is not computed as F B, which cancels where B is large.) Dual form, which never needs A, with
K = FFᵀ + αI, S = E Fᵀ and M = S K⁻¹, so that Ŷ = M R:

    ∂R = Mᵀ ∂Ŷ,    ∂S = (∂Ŷ Rᵀ) K⁻¹,    ∂E = ∂S F
    ∂F = ∂Sᵀ E − (Mᵀ ∂S + ∂Sᵀ M) F,    ∂α = −tr(Mᵀ ∂S)

What is inverted is float64; what has the size of the embeddings is multiplied in their precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops import add_ridge, inverse_factor, solve, solve_transposed


def ridge_prediction(fitted: Tensor, targets: Tensor, others: Tensor, ridge: Tensor) -> Tensor:
    """Ŷ by the smaller system.

    Args:
        fitted: F, (k, N, m), float64.
        targets: R, (k, N, D), float32 or float64.
        others: E, (k, L, m), float64.
        ridge: α, (k,), float64.

    Returns:
        (k, L, D), in the dtype of the targets.
    """
    form = Dual if fitted.shape[1] <= fitted.shape[2] else Primal
    with torch.autocast(fitted.device.type, enabled=False):
        predicted: Tensor = form.apply(fitted, targets, others, ridge)
    return predicted


class Primal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fitted: Tensor, targets: Tensor, others: Tensor, ridge: Tensor) -> Tensor:
        factor = inverse_factor(add_ridge(torch.bmm(fitted.mT, fitted), ridge.unsqueeze(1)))
        weights = solve_transposed(factor, fitted).to(targets.dtype)
        prototypes = torch.bmm(weights.mT, targets)
        ctx.save_for_backward(fitted, targets, others, factor, weights, prototypes)
        return torch.bmm(others.to(targets.dtype), prototypes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fitted, targets, others, factor, weights, prototypes = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            prototypes_gradient = torch.bmm(others.mT, gradient.double())
            solved = solve(factor, prototypes_gradient).to(gradient.dtype)
            outer = torch.bmm(prototypes, solved.mT)
            fitted_gradient = torch.bmm(targets, solved.mT)
            fitted_gradient.baddbmm_(fitted.to(gradient.dtype), outer + outer.mT, alpha=-1)
            return (
                fitted_gradient.double(),
                torch.bmm(weights, prototypes_gradient.to(gradient.dtype)),
                torch.bmm(gradient, prototypes.mT).double(),
                -outer.diagonal(dim1=1, dim2=2).sum(1).double(),
            )


class Dual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fitted: Tensor, targets: Tensor, others: Tensor, ridge: Tensor) -> Tensor:
        factor = inverse_factor(add_ridge(torch.bmm(fitted, fitted.mT), ridge.unsqueeze(1)))
        weights = solve_transposed(factor, torch.bmm(others, fitted.mT))
        rounded = weights.to(targets.dtype)
        ctx.save_for_backward(fitted, targets, others, factor, weights, rounded)
        return torch.bmm(rounded, targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fitted, targets, others, factor, weights, rounded = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            between = solve_transposed(factor, torch.bmm(gradient, targets.mT).double())
            within = torch.bmm(weights.mT, between)
            fitted_gradient = torch.bmm(between.mT, others)
            fitted_gradient.baddbmm_(within + within.mT, fitted, alpha=-1)
            return (
                fitted_gradient,
                torch.bmm(rounded.mT, gradient),
                torch.bmm(between, fitted),
                -within.diagonal(dim1=1, dim2=2).sum(1),
            )
