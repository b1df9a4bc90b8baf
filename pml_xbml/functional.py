"""Cross-batch metric learning (XML) as pure functions of tensors.

Source of everything here, unless a docstring says otherwise: Y. Z. Gurbuz and A. A. Alatan,
"Generalizable Embeddings with Cross-batch Metric Learning", ICIP 2023, arXiv:2307.07620.

Notation (the paper's): an image has n local features of C channels, there are m prototypes, a batch has
N images with D-dimensional embeddings, its histograms over the prototypes are the rows of Z (N, m), its
embeddings the rows of Y (N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Halves",
    "assignments",
    "average_and_histograms",
    "class_disjoint_halves",
    "cross_batch_expression",
    "express",
    "greedy_k_center",
    "hard_assignments",
    "histograms",
    "l2_normalize",
    "prepare_histograms",
    "recursive_ridge_fit",
    "ridge_fit",
]

SIMILARITIES = ("cosine", "dot")

# Shorter vectors have no direction worth the name. torch.nn.functional.normalize uses the same bound, but
# sends a gradient of 1 / bound through it; a feature map that a ReLU has silenced would explode the step.
_SHORTEST_DIRECTED_NORM = 1e-12

# What is read several times is read in blocks of this size on a CPU, so that it comes from memory once.
_CACHED_BYTES = 2**20


def l2_normalize(vectors: Tensor) -> Tensor:
    """Divides vectors by their Euclidean norm; a zero vector stays zero, and so does its gradient.

    Args:
        vectors: (..., C).

    Returns:
        (..., C), each vector of norm 1 or 0.
    """
    unit: Tensor = _UnitVectors.apply(vectors)
    return unit


class _UnitVectors(torch.autograd.Function):
    """∂L/∂x = (g − (g·x̂) x̂) / ‖x‖, in half the time of differentiating the steps."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        inverse_norm = _inverse_norm(vectors)
        unit = vectors * inverse_norm
        ctx.save_for_backward(unit, inverse_norm)
        return unit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, inverse_norm = ctx.saved_tensors
        radial = (gradient * unit).sum(-1, keepdim=True)
        return torch.addcmul(gradient, radial, unit, value=-1) * inverse_norm


def _inverse_norm(vectors: Tensor) -> Tensor:
    if vectors.stride(-1) == 1 or not vectors.is_cpu:
        return _inverse(torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))
    # vector_norm takes ten times as long over a strided dimension.
    precise = _at_least_float32(vectors)
    return _inverse(_root(torch.linalg.vecdot(precise, precise).unsqueeze(-1)).to(vectors.dtype))


def _root(squares: Tensor) -> Tensor:
    # The slope of a root at zero is infinite, so the root is of something, however small.
    return squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > _SHORTEST_DIRECTED_NORM, norm, torch.inf).reciprocal()


def _similarities(features: Tensor, prototypes: Tensor, similarity: str) -> Tensor:
    """s(ν_i, x_j) for all prototypes i and local features j, (B, n, m)."""
    if similarity == "cosine":
        products = _products(features, l2_normalize(prototypes))
        return products * _inverse_norm(features)
    if similarity == "dot":
        return _products(features, prototypes)
    raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")


def _products(features: Tensor, prototypes: Tensor) -> Tensor:
    prototypes = prototypes.to(features.dtype)
    if features.stride(-1) == 1:
        return features @ prototypes.T
    # Feature maps come as (B, C, n) seen transposed: this way round nothing is copied. matmul would.
    return torch.bmm(prototypes.expand(len(features), -1, -1), features.transpose(1, 2)).transpose(1, 2)


def assignments(
    features: Tensor, prototypes: Tensor, temperature: float = 0.1, similarity: str = "cosine"
) -> Tensor:
    """Entropy-smoothed assignment of every local feature to the prototypes.

        n π_ij = softmax_i( s(ν_i, x_j) / τ )

    The smoothed optimum of definition A.5; as τ → 0 it becomes Claim 1, all mass on the best match.

    Args:
        features: local features, (B, n, C).
        prototypes: (m, C).
        temperature: τ > 0, in units of the similarity.
        similarity: "cosine", or "dot" for the plain product.

    Returns:
        (B, m, n), non-negative; each column (B, :, n) sums to one. At least float32, whatever comes in.

    Raises:
        ValueError: on a temperature that is not positive, or another similarity.

    Example:
        >>> features = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
        >>> assignments(features, torch.eye(2), temperature=0.5)
        tensor([[[0.8808, 0.1192],
                 [0.1192, 0.8808]]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    similarities = _similarities(features, prototypes, similarity)
    return _softmax_over_prototypes(similarities, temperature).transpose(1, 2)


def _softmax_over_prototypes(similarities: Tensor, temperature: float) -> Tensor:
    """Of (B, n, m), in its memory layout: torch.softmax would make a transposed view contiguous."""
    logits = _at_least_float32(similarities) / temperature
    if logits.stride(-1) == 1:
        return torch.softmax(logits, dim=-1)
    return torch.softmax(logits.transpose(1, 2), dim=1).transpose(1, 2)


def hard_assignments(features: Tensor, prototypes: Tensor, similarity: str = "cosine") -> Tensor:
    """Index of the prototype that matches each local feature best (Claim 1).

    Args:
        features: local features, (B, n, C).
        prototypes: (m, C).
        similarity: "cosine" or "dot".

    Returns:
        (B, n), integers in [0, m).
    """
    return _similarities(features, prototypes, similarity).argmax(dim=-1)


def histograms(
    features: Tensor, prototypes: Tensor, temperature: float = 0.1, similarity: str = "cosine"
) -> Tensor:
    """Histogram of every image over the prototypes, z_i = Σ_j π_ij.

    Args:
        features: local features, (B, n, C).
        prototypes: (m, C).
        temperature: τ > 0.
        similarity: "cosine" or "dot".

    Returns:
        (B, m), on the simplex: z ≥ 0 and Σ_i z_i = 1. Permuting the local features changes nothing.

    Raises:
        ValueError: on a temperature that is not positive, or another similarity.
    """
    return assignments(features, prototypes, temperature, similarity).mean(dim=-1)


def prepare_histograms(histograms: Tensor, normalize: bool = True, center: bool = False) -> Tensor:
    """The rows of Z as they enter the fit.

    On the simplex the entries are about 1/m, and a ridge would swamp them: hence the normalisation. What all
    images of a batch share tells none of them from another, and is most of a histogram: hence the centring.

    Args:
        histograms: (N, m), of the whole batch, both halves.
        normalize: divide each row by its length.
        center: subtract the mean of the rows first. What is then left of a row is divided by no less than a
            thousandth of the row's length, so that rounding errors are not taken for directions.

    Returns:
        (N, m).
    """
    if not center:
        return l2_normalize(histograms) if normalize else histograms
    centred = histograms - histograms.mean(dim=0)
    if not normalize:
        return centred
    smallest = torch.linalg.vector_norm(histograms.detach(), dim=1, keepdim=True) / 1000
    return centred / _root(centred.square().sum(1, keepdim=True)).clamp(min=smallest.clamp(min=1e-12))


def average_and_histograms(
    features: Tensor, average: Tensor, prototypes: Tensor, temperature: float, similarity: str
) -> tuple[Tensor, Tensor]:
    """The global average and the histograms of the same features, as one node of the graph.

    The two share one backward pass over the features, and the average carries the prototypes with a gradient
    of zero: whatever a step does with the histograms, the prototypes take part in it, which is what
    DistributedDataParallel expects of every parameter.

    Args:
        features: local features, (B, n, C); a transposed view of a feature map is not copied.
        average: their average over n, (B, C), as the pooling in use computes it. It is handed on unchanged.
        prototypes: (m, C).
        temperature: τ > 0.
        similarity: "cosine" or "dot".

    Returns:
        ``average``, unchanged, and :func:`histograms` of the features, (B, m).
    """
    outputs: tuple[Tensor, Tensor] = _AverageAndHistograms.apply(
        features, average.detach(), prototypes, temperature, similarity
    )
    return outputs


class _AverageAndHistograms(torch.autograd.Function):
    """With r_j = 1/‖x_j‖ and unit prototypes ν̂_i, the cosines are c_ij = r_j ν̂_i·x_j and

    ∂L/∂x_j = r_j Σ_i g_ij ν̂_i − r_j² (Σ_i g_ij c_ij) x_j + (1/n) ∂L/∂average,    g = ∂L/∂c.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        average: Tensor,
        prototypes: Tensor,
        temperature: float,
        similarity: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        ctx.backpropagated = False
        with torch.autocast(features.device.type, enabled=False):
            if similarity == "cosine":
                inverse_length = _inverse_norm(prototypes)
                directions = prototypes * inverse_length
                similarities, inverse_norm = _products_and_inverse_norm(features, directions)
                similarities *= inverse_norm
            else:
                directions, inverse_length, inverse_norm = prototypes, None, None
                similarities = _similarities(features, prototypes, similarity)
            assigned = _softmax_over_prototypes(similarities, temperature)
        ctx.save_for_backward(features, directions, inverse_length, similarities, assigned, inverse_norm)
        # A view, which would save the copy, could not be changed in place, by an nn.ReLU(inplace=True) say.
        return average.clone(), assigned.mean(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, average_gradient: Tensor | None, histogram_gradient: Tensor | None
    ) -> tuple[Tensor | None, None, Tensor, None, None]:
        ctx.backpropagated = True
        features, directions, inverse_length, similarities, assigned, inverse_norm = ctx.saved_tensors
        num_positions = features.shape[1]
        spread = None
        if average_gradient is not None:
            spread = (average_gradient / num_positions).unsqueeze(1).expand_as(features)
        if histogram_gradient is None:
            return spread, None, torch.zeros_like(directions), None, None

        assigned_gradient = (histogram_gradient / (num_positions * ctx.temperature)).unsqueeze(1)
        expected = torch.matmul(assigned, assigned_gradient.transpose(1, 2))
        gradient = (assigned * (assigned_gradient - expected)).to(features.dtype)
        radial = None
        if inverse_norm is not None:
            radial = (gradient * similarities).sum(-1, keepdim=True) * inverse_norm.square()
            gradient = gradient * inverse_norm

        features_gradient, directions_gradient = _gradients_of_products(
            features, gradient, directions.to(features.dtype), radial, spread, ctx.needs_input_grad[0]
        )
        directions_gradient = directions_gradient.to(directions.dtype)
        if inverse_length is None:
            return features_gradient, None, directions_gradient, None, None
        along = (directions_gradient * directions).sum(-1, keepdim=True)
        prototypes_gradient = torch.addcmul(directions_gradient, along, directions, value=-1) * inverse_length
        return features_gradient, None, prototypes_gradient, None, None


def _products_and_inverse_norm(features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """ν̂_i·x_j, (B, n, m), and 1/‖x_j‖, (B, n, 1)."""
    size = _block_size(features)
    if size >= len(features):
        return _products(features, directions), _inverse_norm(features)
    directions = directions.to(features.dtype)
    feature_maps = features.transpose(1, 2)
    products = features.new_empty(len(features), len(directions), features.shape[1])
    squared_norms = _at_least_float32(feature_maps[:, :1]).clone()
    # One buffer for all blocks: to allocate one for each costs more than the arithmetic.
    buffer = _at_least_float32(feature_maps[:size]).clone()
    for block, block_products, block_squared_norms in zip(
        feature_maps.split(size), products.split(size), squared_norms.split(size), strict=True
    ):
        squares = torch.square(_at_least_float32(block), out=buffer[: len(block)])
        torch.sum(squares, 1, keepdim=True, out=block_squared_norms)
        torch.bmm(directions.expand(len(block), -1, -1), block, out=block_products)
    inverse_norm = _inverse(_root(squared_norms).to(features.dtype))
    return products.transpose(1, 2), inverse_norm.transpose(1, 2)


def _gradients_of_products(
    features: Tensor,
    gradient: Tensor,
    directions: Tensor,
    radial: Tensor | None,
    spread: Tensor | None,
    wants_features: bool,
) -> tuple[Tensor | None, Tensor]:
    """Σ_i g_ij ν̂_i − radial_j x_j + spread_j, (B, n, C) as the features lie in memory, or None if it is not
    wanted; and Σ_bj g_bj x_bjᵀ, (m, C).
    """
    features_gradient = torch.empty_like(features) if wants_features else None
    directions_gradient = features.new_zeros(gradient.shape[-1], features.shape[-1])
    if features.stride(-1) == 1:
        if features_gradient is not None:
            right = directions.expand(len(features), -1, -1)
            _add_products(features_gradient, gradient, right, features, radial, spread)
        directions_gradient.addmm_(gradient.flatten(0, 1).T, features.flatten(0, 1))
        return features_gradient, directions_gradient
    size = _block_size(features)
    # MKL takes twice as long for directions that are a transposed view.
    left = directions.T.contiguous()
    for start in range(0, len(features), size):
        block = slice(start, start + size)
        block_gradient = gradient[block].transpose(1, 2)
        if features_gradient is not None:
            _add_products(
                features_gradient[block].transpose(1, 2),
                left.expand(len(block_gradient), -1, -1),
                block_gradient,
                features[block].transpose(1, 2),
                None if radial is None else radial[block].transpose(1, 2),
                None if spread is None else spread[block].transpose(1, 2),
            )
        directions_gradient.addbmm_(block_gradient, features[block])
    return features_gradient, directions_gradient


def _add_products(
    out: Tensor, left: Tensor, right: Tensor, features: Tensor, radial: Tensor | None, spread: Tensor | None
) -> None:
    """out = left @ right − radial · features + spread; what is None is left out."""
    base = features.new_zeros(()).expand_as(features) if spread is None else spread
    if radial is None:
        out.copy_(base)
    else:
        torch.addcmul(base, features, radial, value=-1, out=out)
    out.baddbmm_(left, right)


def _block_size(features: Tensor) -> int:
    """Of how many feature maps are worked on at a time: on a CPU as many as its cache holds, else of all."""
    if features.stride(-1) == 1 or not features.is_cpu or torch.compiler.is_compiling():
        return max(1, len(features))
    bytes_of_a_map = features[:1].numel() * features.element_size()
    return max(1, _CACHED_BYTES // max(1, bytes_of_a_map))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def ridge_fit(histograms: Tensor, embeddings: Tensor, ridge: float, prior: Tensor | None = None) -> Tensor:
    """Prototypes in embedding space, fitted to a half-batch.

        A = argmin_A ‖Y − Z A‖² + ε‖A − A_0‖²
          = A_0 + (ZᵀZ + ε I_m)⁻¹ Zᵀ(Y − Z A_0)     primal, taken for N ≥ m
          = A_0 + Zᵀ(ZZᵀ + ε I_N)⁻¹ (Y − Z A_0)     dual, taken for N < m

    The system is solved in float64 by Cholesky, whatever dtype or autocast state it meets: histograms repeat
    within a batch, and float32 fails on that for ε ≤ 1e-4. A ridge that float64 cannot resolve beside the
    trace of the system (64 units in the last place) is raised to what it can.

    Args:
        histograms: Z, (..., N, m).
        embeddings: Y, (..., N, D).
        ridge: ε > 0.
        prior: A_0, (..., m, D); zero if left out. The previous batch's fit makes this the recursion of
            the paper.

    Returns:
        A, (..., m, D), in float64. The gradient flows to Z, Y and A_0.

    Raises:
        ValueError: if the ridge is not positive and finite.
    """
    _check_ridge(ridge)
    histograms, targets = histograms.double(), embeddings.double()
    if prior is not None:
        prior = prior.double()
        targets = targets - histograms @ prior
    # torch.bmm, with one dimension of batches, costs small systems a third less than torch.matmul.
    fitted: Tensor = _RidgeFit.apply(
        histograms.reshape(-1, *histograms.shape[-2:]), targets.reshape(-1, *targets.shape[-2:]), ridge
    )
    fitted = fitted.reshape(*histograms.shape[:-2], *fitted.shape[-2:])
    return fitted if prior is None else prior + fitted


def _check_ridge(ridge: float) -> None:
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge must be greater than 0 and finite, got {ridge}")


class _RidgeFit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, histograms: Tensor, targets: Tensor, ridge: float) -> Tensor:
        fit = _fit(histograms, targets, ridge)
        ctx.save_for_backward(histograms, *fit)
        return fit[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        histograms, *fit = ctx.saved_tensors
        return *_fit_gradient(gradient, histograms, *fit), None


class _ExpressionByPrototypes(torch.autograd.Function):
    """Ŷ_k = Z_k A_l for the two halves k ≠ l with A_l = T_lᵀ R_l and T_l = Z_l G_l⁻¹, the primal form.

    What is inverted, T and B, is float64; what has the size of the embeddings has their precision.

        B_l = G_l⁻¹ Z_kᵀ ∂Ŷ_k,     ∂R_l = T_l Z_kᵀ ∂Ŷ_k,
        ∂Z_l = R_l B_lᵀ − Z_l (A_l B_lᵀ + B_l A_lᵀ) + ∂Ŷ_l A_kᵀ
    """

    @staticmethod
    def forward(ctx: Any, histograms: Tensor, targets: Tensor, ridge: float) -> Tensor:
        factor = _inverse_factor(torch.bmm(histograms.mT, histograms), ridge)
        weights = _solve_transposed(factor, histograms).to(targets.dtype)
        fitted = torch.bmm(weights.mT, targets)
        rounded = histograms.to(targets.dtype)
        ctx.save_for_backward(histograms, rounded, targets, factor, weights, fitted)
        return torch.bmm(rounded, fitted.flip(0))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        histograms, rounded, targets, factor, weights, fitted = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            fitted_gradient = torch.bmm(histograms.mT, gradient.double()).flip(0)
            solved = _solve(factor, fitted_gradient).to(gradient.dtype)
            outer = torch.bmm(fitted, solved.mT)
            histograms_gradient = torch.bmm(targets, solved.mT)
            histograms_gradient.baddbmm_(rounded, outer + outer.mT, alpha=-1)
            histograms_gradient.baddbmm_(gradient, fitted.flip(0).mT)
            # Not Z B: where B is large Z takes it away again, and with it its digits.
            targets_gradient = torch.bmm(weights, fitted_gradient.to(gradient.dtype))
        return histograms_gradient.to(histograms.dtype), targets_gradient, None


class _ExpressionByKernel(torch.autograd.Function):
    """Ŷ_k = M_l R_l with M_l = S_l K_l⁻¹, S_l = Z_k Z_lᵀ and K_l = Z_l Z_lᵀ + εI: the dual form without A.

    All but the first and the last products are of N×N matrices. What is inverted, M and F, is float64; what
    has the size of the embeddings has their precision.

        ∂R_l = M_lᵀ ∂Ŷ_k,     ∂S_l = F_l = (∂Ŷ_k R_lᵀ) K_l⁻¹,     ∂K_l = −M_lᵀ F_l
    """

    @staticmethod
    def forward(ctx: Any, histograms: Tensor, targets: Tensor, ridge: float) -> Tensor:
        factor = _inverse_factor(torch.bmm(histograms, histograms.mT), ridge)
        between = histograms[1] @ histograms[0].T
        weights = _solve_transposed(factor, torch.stack([between, between.T]))
        rounded = weights.to(targets.dtype)
        ctx.save_for_backward(histograms, targets, factor, weights, rounded)
        return torch.bmm(rounded, targets).flip(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        histograms, targets, factor, weights, rounded = ctx.saved_tensors
        gradient = gradient.flip(0)
        with torch.autocast(gradient.device.type, enabled=False):
            solved = _solve_transposed(factor, torch.bmm(gradient, targets.mT).double())
            within = torch.bmm(weights.mT, solved)
            between = solved[0].T + solved[1]
            histograms_gradient = torch.bmm(torch.stack([between, between.T]), histograms.flip(0))
            histograms_gradient.baddbmm_(within + within.mT, histograms, alpha=-1)
            return histograms_gradient, torch.bmm(rounded.mT, gradient), None


def _fit(histograms: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """A = G⁻¹ZᵀR with G = ZᵀZ + εI, or A = ZᵀK⁻¹R with K = ZZᵀ + εI, of a batch of systems in float64.

    Returns:
        A, the inverse factor of the system, and R in the primal, C = K⁻¹R in the dual form.
    """
    transposed = histograms.mT
    if histograms.shape[1] >= histograms.shape[2]:
        factor = _inverse_factor(torch.bmm(transposed, histograms), ridge)
        return _solve(factor, torch.bmm(transposed, targets)), factor, targets
    factor = _inverse_factor(torch.bmm(histograms, transposed), ridge)
    coefficients = _solve(factor, targets)
    return torch.bmm(transposed, coefficients), factor, coefficients


def _fit_gradient(
    gradient: Tensor, histograms: Tensor, fitted: Tensor, factor: Tensor, operand: Tensor
) -> tuple[Tensor, Tensor]:
    """∂Z and ∂R in closed form.

    Primal, B = G⁻¹ ∂A:      ∂Z = R Bᵀ − Z (A Bᵀ + B Aᵀ),     ∂R = Z B.
    Dual, H = K⁻¹ Z ∂A:      ∂Z = C ∂Aᵀ − (H Cᵀ + C Hᵀ) Z,    ∂R = H.
    """
    if histograms.shape[1] >= histograms.shape[2]:
        solved = _solve(factor, gradient)
        outer = torch.bmm(fitted, solved.mT)
        direct = torch.bmm(operand, solved.mT)
        return direct.baddbmm_(histograms, outer + outer.mT, alpha=-1), torch.bmm(histograms, solved)
    targets_gradient = _solve(factor, torch.bmm(histograms, gradient))
    outer = torch.bmm(targets_gradient, operand.mT)
    direct = torch.bmm(operand, gradient.mT)
    return direct.baddbmm_(outer + outer.mT, histograms, alpha=-1), targets_gradient


def _inverse_factor(gram: Tensor, ridge: float) -> Tensor:
    """W = L⁻¹ of the regularised system LLᵀ, so that its inverse is WᵀW."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    resolution = 64 * torch.finfo(gram.dtype).eps * diagonal.sum(-1, keepdim=True)
    diagonal.add_(resolution.clamp(min=ridge))
    # cholesky_ex does not wait for the device to report success: the floor above ensures it.
    factor = torch.linalg.cholesky_ex(gram).L
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def _solve(inverse_factor: Tensor, right: Tensor) -> Tensor:
    # Half the time of cholesky_solve. Multiplying by the inverse itself, WᵀW, would be faster still, but its
    # rounding is not that of a solve: gradients were off by 20% for duplicated histograms and ε = 1e-6.
    return torch.bmm(inverse_factor.mT, torch.bmm(inverse_factor, right))


def _solve_transposed(inverse_factor: Tensor, left: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(left, inverse_factor.mT), inverse_factor)


def recursive_ridge_fit(
    histograms: Tensor, embeddings: Tensor, fitted_prototypes: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of recursive least squares over batches.

        P_t = P_{t−1} + Z_tᵀ Z_t,     A_t = A_{t−1} + P_t⁻¹ Z_tᵀ (Y_t − Z_t A_{t−1})

    Started at A_0 = 0 (or a prior) and P_0 = ε I, A_t equals one ridge fit on the union of t batches.

    Args:
        histograms: Z_t, (N, m).
        embeddings: Y_t, (N, D).
        fitted_prototypes: A_{t−1}, (m, D).
        precision: P_{t−1}, (m, m), the inverse covariance that is carried along.

    Returns:
        A_t (m, D) and P_t (m, m), in float64.
    """
    histograms, embeddings = histograms.double(), embeddings.double()
    precision = precision.double() + histograms.mT @ histograms
    innovation = histograms.mT @ (embeddings - histograms @ fitted_prototypes.double())
    factor = torch.linalg.cholesky(precision)
    return fitted_prototypes + torch.cholesky_solve(innovation, factor), precision


def express(histograms: Tensor, fitted_prototypes: Tensor) -> Tensor:
    """Samples as combinations of fitted prototypes, Ŷ = Z A.

    Args:
        histograms: Z, (..., N, m).
        fitted_prototypes: A, (..., m, D), of another half as :func:`ridge_fit` gives it.

    Returns:
        Ŷ, (..., N, D), in the dtype of the fitted prototypes.
    """
    with torch.autocast(histograms.device.type, enabled=False):
        return histograms.to(fitted_prototypes.dtype) @ fitted_prototypes


@dataclass(frozen=True, eq=False)
class Halves:
    """To which of the two halves each sample of a batch belongs.

    Attributes:
        in_first: (N,) bool, True for the samples of the first half, as :func:`class_disjoint_halves` gives
            it. None if the batch is cut in the middle: the first half are its first N/2 samples, N even.

    Example:
        >>> Halves(class_disjoint_halves(torch.tensor([5, 3, 5, 3]))).split(torch.tensor([10, 11, 12, 13]))
        (tensor([11, 13]), tensor([10, 12]))
        >>> Halves().split(torch.tensor([10, 11, 12, 13]))
        (tensor([10, 11]), tensor([12, 13]))
    """

    in_first: Tensor | None = None

    @property
    def are_two(self) -> bool:
        """Whether neither half is empty. Waits for the device unless cut in the middle."""
        return self.in_first is None or bool(self.in_first.any() & ~self.in_first.all())

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the first and of the second half. Waits for the device unless cut in the middle."""
        if self.in_first is None:
            middle = len(rows) // 2
            return rows[:middle], rows[middle:]
        return rows[self.in_first], rows[~self.in_first]


CUT_IN_THE_MIDDLE = Halves()


def cross_batch_expression(
    histograms: Tensor, embeddings: Tensor, ridge: float, halves: Halves = CUT_IN_THE_MIDDLE
) -> Tensor:
    """Every sample expressed with the prototypes of the half that it does not belong to.

        Ŷ_1 = Z_1 A_2,   Ŷ_2 = Z_2 A_1

    What is inverted is float64, whatever autocast says; what has the size of the embeddings is multiplied in
    their precision, at least float32. Relative errors stay below 1e-3 for ε ≥ 1e-6, gradients' too.

    Args:
        histograms: Z, (N, m).
        embeddings: Y, (N, D), as the distance of the metric loss sees them.
        ridge: ε > 0.
        halves: which samples belong to which half.

    Returns:
        Ŷ, (N, D), row for row as Y, in its dtype. Nothing waits for the device.
    """
    _check_ridge(ridge)
    histograms, targets = histograms.double(), _at_least_float32(embeddings)
    if halves.in_first is None:
        histograms, targets = histograms.unflatten(0, (2, -1)), targets.unflatten(0, (2, -1))
        return _express_halves(histograms, targets, ridge).flatten(0, 1).to(embeddings.dtype)
    # A row of zeros adds nothing to a ridge fit, so masking needs no data-dependent shape.
    masked = histograms * torch.stack([halves.in_first, ~halves.in_first]).unsqueeze(-1)
    expressed = _express_halves(masked, targets.expand(2, -1, -1), ridge)
    return expressed.sum(0).to(embeddings.dtype)


def _express_halves(halves: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Ŷ (2, N, D) of histograms (2, N, m) and embeddings (2, N, D), by the smaller system."""
    by_kernel = halves.shape[1] <= halves.shape[2]
    expression = _ExpressionByKernel if by_kernel else _ExpressionByPrototypes
    with torch.autocast(halves.device.type, enabled=False):
        expressed: Tensor = expression.apply(halves, targets, ridge)
    return expressed


def class_disjoint_halves(labels: Tensor, world_size: int = 1) -> Tensor:
    """Splits a batch into two halves that share no class.

    If the first halves of all blocks together share no class with the second halves of all blocks, those are
    the halves. Otherwise the classes, the largest first and equal ones in the order of their labels, go to
    the first half up to where the two sides balance best; that depends on the labels alone, never on their
    order in the batch.

    Args:
        labels: (N,), of any dtype that sorts.
        world_size: of how many equally long blocks the batch consists, one from each process.

    Returns:
        (N,) bool, True for the first half. All True if there is one class only. Nothing waits for the
        device.

    Raises:
        ValueError: if there are fewer labels than blocks.

    Example:
        >>> class_disjoint_halves(torch.tensor([5, 5, 3, 3]))
        tensor([ True,  True, False, False])
        >>> class_disjoint_halves(torch.tensor([5, 3, 5, 3, 5]))
        tensor([ True, False,  True, False,  True])
    """
    num_samples = len(labels)
    if not 1 <= world_size <= num_samples:
        raise ValueError(
            f"world_size must lie between 1 and the number of labels, {num_samples}, got {world_size}"
        )
    position = torch.arange(num_samples, device=labels.device)
    sorted_labels, order = labels.sort(stable=True)
    is_new_class = torch.zeros_like(position)
    is_new_class[1:] = sorted_labels[1:] != sorted_labels[:-1]
    class_index = torch.empty_like(position).scatter_(0, order, is_new_class.cumsum(0))

    block_size = num_samples // world_size
    in_first = position % block_size < block_size // 2
    zeros = torch.zeros_like(position)
    first_sizes = zeros.scatter_add(0, class_index, in_first.long())
    class_sizes = zeros.scatter_add(0, class_index, torch.ones_like(position))
    is_shared = (first_sizes > 0) & (first_sizes < class_sizes)

    sizes_descending, by_size = class_sizes.sort(descending=True, stable=True)
    dealt = sizes_descending.cumsum(0)
    # Scaled so that the first of equally good cuts wins on every device; a cut behind the last class is none.
    imbalance = (2 * dealt - num_samples).abs() * num_samples + position
    cut = torch.where(dealt < num_samples, imbalance, num_samples**2 + position).argmin()
    class_is_first = torch.zeros_like(in_first).scatter_(0, by_size, position <= cut)

    keeps_blocks = ~is_shared.any() & (num_samples == world_size * block_size) & (block_size % 2 == 0)
    return torch.where(keeps_blocks, in_first, class_is_first[class_index])


def greedy_k_center(points: Tensor, num_centers: int) -> tuple[Tensor, Tensor]:
    """Chooses centers among points so that every point lies close to one.

    The greedy rule, each time the point that lies farthest from all centers so far, starting at the one that
    lies farthest from the mean: its radius is at most twice the smallest possible (T. F. Gonzalez,
    "Clustering to minimize the maximum intercluster distance", 1985).

    Args:
        points: (n, C).
        num_centers: k, between 1 and n. Among fewer than k distinct points some center repeats.

    Returns:
        Indices of the centers (k,), and the radius δ they reach: the largest Euclidean distance of a point
        to its nearest center, a scalar.

    Raises:
        ValueError: if there are fewer points than centers.
    """
    if not 1 <= num_centers <= len(points):
        raise ValueError(
            f"num_centers must lie between 1 and the number of points, {len(points)}, got {num_centers}"
        )
    centers = points.new_empty(num_centers, dtype=torch.long)
    farthest = torch.linalg.vector_norm(points - points.mean(0), dim=-1).argmax()
    distance = points.new_full((len(points),), float("inf"))
    for index in range(num_centers):
        centers[index] = farthest
        to_center = torch.linalg.vector_norm(points - points[farthest], dim=-1)
        distance = torch.minimum(distance, to_center)
        farthest = distance.argmax()
    return centers, distance.max()
