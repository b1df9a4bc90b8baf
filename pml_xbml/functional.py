"""Cross-batch metric learning (XML) as pure functions of tensors: the method on one page.

Source of everything here, unless a docstring says otherwise: Y. Z. Gurbuz and A. A. Alatan,
"Generalizable Embeddings with Cross-batch Metric Learning", ICIP 2023, arXiv:2307.07620.

An image has n local features of C channels, the rows of X (n, C); there are m prototypes ν_i. A batch has N
images with D-dimensional embeddings; its histograms over the prototypes are the rows of Z (N, m), its
embeddings the rows of Y (N, D). The method is

    z_i = (1/n) Σ_j softmax_i( s(ν_i, x_j) / τ )                histograms
    A_k = argmin_A ‖Y_k − Z_k A‖² + ε‖A‖²                       ridge_fit, to each half k of the batch
    Ŷ_1 = Z_1 A_2,   Ŷ_2 = Z_2 A_1                              express, with the other half's prototypes

The fit has an intercept where :class:`~pml_xbml.losses.CrossBatchPrototypeLoss` runs it: Z_k and Y_k are then
deviations from the means of the half k that is fitted, of which the paper's public text says nothing. A
training step runs these formulas as :func:`average_and_histograms` and :func:`cross_batch_expression`, with
gradients that ``_kernels`` derives by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._kernels.expression import ridge_prediction
from ._kernels.halves import CUT_IN_THE_MIDDLE, Halves, class_disjoint_halves
from ._kernels.ops import UnitVectors, add_ridge, at_least_float32, mean_and_variance
from ._kernels.pooling import AverageAndHistograms

__all__ = [
    "CUT_IN_THE_MIDDLE", "Halves", "assignments", "average_and_histograms", "class_disjoint_halves",
    "cross_batch_expression", "express", "greedy_k_center", "hard_assignments", "histograms", "l2_normalize",
    "recursive_ridge_fit", "ridge_fit", "transfer_r2",
]  # fmt: skip

SIMILARITIES = ("cosine", "dot")


def l2_normalize(vectors: Tensor) -> Tensor:
    """Vectors (..., C) divided by their norms; a zero vector stays zero, and so does its gradient."""
    unit: Tensor = UnitVectors.apply(vectors)
    return unit


def _similarities(features: Tensor, prototypes: Tensor, similarity: str) -> Tensor:
    """s(ν_i, x_j), (B, m, n)."""
    _check_similarity(similarity)
    features = at_least_float32(features)
    prototypes = prototypes.to(features.dtype)
    if similarity == "cosine":
        features, prototypes = l2_normalize(features), l2_normalize(prototypes)
    with torch.autocast(features.device.type, enabled=False):
        return prototypes @ features.mT


def assignments(
    features: Tensor, prototypes: Tensor, temperature: float = 0.1, similarity: str = "cosine"
) -> Tensor:
    """Entropy-smoothed assignment of local features to prototypes, n π_ij = softmax_i( s(ν_i, x_j) / τ ).

    The smoothed optimum of the appendix's Definition 4, equation (A.5). As τ → 0 it becomes Claim 1, all mass
    on the best match.

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
    _check_temperature(temperature)
    return torch.softmax(_similarities(features, prototypes, similarity) / temperature, dim=1)


def hard_assignments(features: Tensor, prototypes: Tensor, similarity: str = "cosine") -> Tensor:
    """Index of the prototype that matches each local feature best (Claim 1), (B, n)."""
    return _similarities(features, prototypes, similarity).argmax(dim=1)


def histograms(
    features: Tensor, prototypes: Tensor, temperature: float = 0.1, similarity: str = "cosine"
) -> Tensor:
    """Histogram of every image over the prototypes, z_i = Σ_j π_ij.

    Args:
        features, prototypes, temperature, similarity: as for :func:`assignments`.

    Returns:
        (B, m), on the simplex: z ≥ 0 and Σ_i z_i = 1. Permuting the local features changes nothing.
    """
    return assignments(features, prototypes, temperature, similarity).mean(dim=-1)


def average_and_histograms(
    feature_maps: Tensor, prototypes: Tensor, temperature: float = 0.1, similarity: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """The global average of feature maps and the :func:`histograms` of their local features, as one node.

    The same as ``features.mean(2), histograms(features.mT, ...)`` of ``features = feature_maps.flatten(2)``,
    with a single pass over the features in the backward, and an average that carries the prototypes with a
    gradient of zero.

    Args:
        feature_maps: (B, C, H, W), or tokens as (B, C, n).
        prototypes, temperature, similarity: as for :func:`assignments`.

    Returns:
        The average (B, C), bit for bit that of ``AdaptiveAvgPool2d(1)``, and the histograms (B, m).
    """
    _check_temperature(temperature)
    _check_similarity(similarity)
    outputs: tuple[Tensor, Tensor] = AverageAndHistograms.apply(
        feature_maps, prototypes, temperature, similarity
    )
    return outputs


def ridge_fit(
    histograms: Tensor, embeddings: Tensor, ridge: float, prior: Tensor | None = None, intercept: bool = False
) -> Tensor:
    """Prototypes in embedding space, fitted to a half-batch in float64.

        A = argmin_A ‖Y − Z A‖² + ε‖A − A_0‖²
          = A_0 + (ZᵀZ + ε I_m)⁻¹ Zᵀ(Y − Z A_0)     primal, taken for N ≥ m
          = A_0 + Zᵀ(ZZᵀ + ε I_N)⁻¹ (Y − Z A_0)     dual, taken for N < m

    Args:
        histograms: Z, (..., N, m).
        embeddings: Y, (..., N, D).
        ridge: ε > 0, raised to what float64 can resolve beside the trace of the system. With an intercept it
            is relative to the variance: α = ε mean_rows ‖Z − z̄‖² takes the place of ε. That is the better
            measure where deviations are small beside the mean, as in the histograms of an untrained network,
            which an absolute ridge would swamp; and it means the same for any number of prototypes.
        prior: A_0, (..., m, D); zero if left out. The last batch's fit makes this the paper's recursion.
        intercept: fit Z − z̄ and Y − ȳ, the deviations from the means, as ordinary ridge regression does.
            Where the rows of Z are all alike, A is zero, or the prior.

    Returns:
        A, (..., m, D), in float64. The gradient flows to Z, Y and A_0.

    Raises:
        ValueError: if the ridge is not positive and finite.
    """
    _check_ridge(ridge)
    # Autocast leaves float64 alone.
    fitted, targets = histograms.double(), embeddings.double()
    alpha = fitted.new_full((1, 1), ridge)
    if intercept:
        fitted, targets, _, alpha = _deviations(fitted, targets, ridge)
    residual = targets if prior is None else targets - fitted @ prior.double()
    if fitted.shape[-2] >= fitted.shape[-1]:
        system = add_ridge(fitted.mT @ fitted, alpha.squeeze(-1))
        change = torch.linalg.solve_ex(system, fitted.mT @ residual).result
    else:
        system = add_ridge(fitted @ fitted.mT, alpha.squeeze(-1))
        change = fitted.mT @ torch.linalg.solve_ex(system, residual).result
    return change if prior is None else prior + change


def _deviations(
    histograms: Tensor, embeddings: Tensor, ridge: float, members: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Z − z̄, Y − ȳ, z̄ and α of a fit with an intercept; 0 for Z − z̄ where the rows of Z are all alike."""
    mean, variance = mean_and_variance(histograms, members)
    varies = variance > 0
    targets = embeddings - mean_and_variance(embeddings, members)[0]
    return (histograms - mean) * varies, targets, mean, ridge * torch.where(varies, variance, 1)


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
    return fitted_prototypes + torch.linalg.solve(precision, innovation), precision


def express(histograms: Tensor, fitted_prototypes: Tensor) -> Tensor:
    """Samples as combinations of fitted prototypes, Ŷ = Z A.

    Args:
        histograms: Z, (..., N, m); after a fit with an intercept Z − z̄, z̄ being the fitted half's mean.
        fitted_prototypes: A, (..., m, D), as :func:`ridge_fit` gives it.

    Returns:
        Ŷ, (..., N, D), in the dtype of the fitted prototypes.
    """
    with torch.autocast(histograms.device.type, enabled=False):
        return histograms.to(fitted_prototypes.dtype) @ fitted_prototypes


def cross_batch_expression(
    histograms: Tensor,
    embeddings: Tensor,
    ridge: float,
    halves: Halves = CUT_IN_THE_MIDDLE,
    intercept: bool = False,
) -> Tensor:
    """Every sample expressed with the prototypes of the half that it does not belong to.

        Ŷ_1 = Z_1 A_2,           Ŷ_2 = Z_2 A_1
        Ŷ_1 = (Z_1 − z̄_2) A_2,   Ŷ_2 = (Z_2 − z̄_1) A_1      with an intercept

    The same as :func:`express` with the :func:`ridge_fit` of the other half. With an intercept it is the
    expected deviation from the fitted half's mean embedding ȳ_k, which is not added.

    What is inverted is float64, whatever autocast says; what has the size of the embeddings is multiplied in
    their precision, at least float32. Relative errors stay below 1e-3 for ε ≥ 1e-6, gradients' too.

    Args:
        histograms: Z, (N, m).
        embeddings: Y, (N, D), as the distance of the metric loss sees them.
        ridge: ε > 0; relative to the histograms' variance with an intercept, see :func:`ridge_fit`.
        halves: which samples belong to which half.
        intercept: fit an intercept. A half whose histograms are all alike expresses the other by zeros.

    Returns:
        Ŷ, (N, D), row for row as Y, in its dtype. Nothing waits for the device.
    """
    _check_ridge(ridge)
    with torch.autocast(histograms.device.type, enabled=False):
        fitted, members = halves.stack(histograms.double())
        targets, _ = halves.stack(at_least_float32(embeddings))
        others = fitted.flip(0) if members is None else fitted
        alpha = fitted.new_full((2, 1, 1), ridge)
        if intercept:
            fitted, targets, mean, alpha = _deviations(fitted, targets, ridge, members)
            others = others - mean
        if members is not None:
            # A row of zeros adds nothing to a fit, so that no shape depends on the data.
            fitted, others = fitted * members, others * ~members
        expressed = ridge_prediction(fitted, targets, others, alpha.flatten())
    expressed = expressed.flip(0).flatten(0, 1) if members is None else expressed.sum(0)
    return expressed.to(embeddings.dtype)


def transfer_r2(expressed: Tensor, embeddings: Tensor, halves: Halves = CUT_IN_THE_MIDDLE) -> Tensor:
    """How much of each half's variance the other half's fit with an intercept explains.

        R²_k = 1 − ‖Y_k − ȳ_k − Ŷ_k‖² / ‖Y_k − ȳ_k‖²

    Args:
        expressed: Ŷ, (N, D), of :func:`cross_batch_expression` with ``intercept=True``.
        embeddings: Y, (N, D), as they entered the fit.
        halves: which samples belong to which half.

    Returns:
        (2,): 1 where a half is expressed exactly, 0 for a useless fit (Ŷ = 0) and for embeddings that are all
        alike, negative where the mean would be the better guess. Nothing waits for the device.
    """
    rows, members = halves.stack(at_least_float32(embeddings))
    mean, variance = mean_and_variance(rows, members)
    residual = rows - mean - halves.stack(at_least_float32(expressed))[0]
    unexplained, _ = mean_and_variance(residual.square().sum(-1, keepdim=True), members)
    varies = variance > 0
    return torch.where(varies, 1 - unexplained / torch.where(varies, variance, 1), 0).flatten()


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


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _check_similarity(similarity: str) -> None:
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")


def _check_ridge(ridge: float) -> None:
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge must be positive and finite, got {ridge}")
