"""Norms and linear systems that the other kernels share.

Unit vectors, x̂ = x / ‖x‖:

    ∂L/∂x = (g − (g·x̂) x̂) / ‖x‖,    g = ∂L/∂x̂

A system G = LLᵀ is solved by the inverse of its factor, W = L⁻¹, so that G⁻¹ = WᵀW:

    G⁻¹ B = Wᵀ (W B),    C G⁻¹ = (C Wᵀ) W

That takes half the time of ``cholesky_solve``. To multiply by G⁻¹ itself would take less still, but does not
round as a solve does: with repeated histograms and ε = 1e-6, gradients were wrong by 20%.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A shorter vector has no direction. torch.nn.functional.normalize has the same bound, but its gradient there
# is 1 / bound: where a ReLU has silenced a feature map, that would end the training.
SHORTEST_DIRECTED_NORM = 1e-12

# Relative to the length of what is centered. Below it, rounding errors of float32 would be more than a
# thousandth of what is left.
SMALLEST_DEVIATION = 1e-4


def at_least_float32(values: Tensor) -> Tensor:
    """In half precision squares, products and exponentials overflow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def inverse_norms(vectors: Tensor, dim: int) -> Tensor:
    """1 / ‖x‖ along a dimension, which is kept; 0 for a vector without direction. Not for autograd."""
    # Along a dimension that is not the innermost one, vector_norm takes five times as long.
    norms = torch.linalg.vecdot(vectors, vectors, dim=dim).unsqueeze(dim).sqrt()
    return torch.where(norms > SHORTEST_DIRECTED_NORM, norms, torch.inf).reciprocal()


class UnitVectors(torch.autograd.Function):
    """Vectors (..., C) divided by their norms."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        precise = at_least_float32(vectors)
        # Autocast would take the squares in half precision, where they overflow.
        with torch.autocast(vectors.device.type, enabled=False):
            inverse_norm = inverse_norms(precise, dim=-1)
        unit = precise * inverse_norm
        ctx.save_for_backward(unit, inverse_norm)
        return unit.to(vectors.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, inverse_norm = ctx.saved_tensors
        return tangential(gradient.to(unit.dtype), unit, inverse_norm).to(gradient.dtype)


def tangential(gradient: Tensor, unit: Tensor, inverse_norm: Tensor) -> Tensor:
    """(g − (g·x̂) x̂) / ‖x‖ of vectors (..., C)."""
    radial = (gradient * unit).sum(-1, keepdim=True)
    return torch.addcmul(gradient, radial, unit, value=-1) * inverse_norm


def mean_and_variance(rows: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean row (..., 1, C) and the mean squared distance to it (..., 1, 1).

    Args:
        rows: (..., n, C).
        members: (..., n, 1) bool, which rows count; all if left out.

    Returns:
        Both; the variance is 0 where the rows differ by no more than rounding errors.
    """

    def mean(values: Tensor) -> Tensor:
        if members is None:
            return values.mean(-2, keepdim=True)
        return (values * members).sum(-2, keepdim=True) / members.sum(-2, keepdim=True).clamp(min=1)

    center = mean(rows)
    variance = mean((rows - center).square().sum(-1, keepdim=True))
    smallest = SMALLEST_DEVIATION**2 * mean(rows.detach().square().sum(-1, keepdim=True))
    return center, torch.where(variance > smallest, variance, 0)


def add_ridge(gram: Tensor, ridge: Tensor) -> Tensor:
    """Adds εI in place, or what float64 can resolve beside the trace: 64 units in the last place of it.

    Args:
        gram: (..., k, k).
        ridge: ε, broadcasts to (..., 1).
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    resolution = 64 * torch.finfo(gram.dtype).eps * diagonal.detach().sum(-1, keepdim=True)
    diagonal.add_(torch.maximum(resolution, ridge))
    return gram


def inverse_factor(system: Tensor) -> Tensor:
    """W = L⁻¹ of systems LLᵀ, (..., k, k)."""
    # cholesky_ex does not wait for the device to report success, which add_ridge ensures.
    factor = torch.linalg.cholesky_ex(system).L
    identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def solve(inverse_factor: Tensor, right: Tensor) -> Tensor:
    """G⁻¹ B."""
    return torch.bmm(inverse_factor.mT, torch.bmm(inverse_factor, right))


def solve_transposed(inverse_factor: Tensor, left: Tensor) -> Tensor:
    """C G⁻¹."""
    return torch.bmm(torch.bmm(left, inverse_factor.mT), inverse_factor)
