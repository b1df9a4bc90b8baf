"""The global average of feature maps and the histograms of their local features, as one node of the graph.

x_j are the n local features of an image, ν̂_i the prototypes divided by their norms, r_j = 1 / ‖x_j‖:

    c_ij = r_j ν̂_i·x_j,    p_ij = softmax_i(c_ij / τ),    z_i = (1/n) Σ_j p_ij,    a = (1/n) Σ_j x_j

With the gradients ∂z and ∂a of the two outputs:

    ∂c_ij = p_ij (∂z_i − Σ_k p_kj ∂z_k) / (n τ)
    ∂x_j  = r_j Σ_i ∂c_ij ν̂_i − r_j² (Σ_i ∂c_ij c_ij) x_j + ∂a / n
    ∂ν̂_i  = Σ_j r_j ∂c_ij x_j,  and ∂ν_i from it as in ops

For the dot product r_j = 1, ν̂_i = ν_i, and the term with x_j is left out. Both gradients to the features are
summed while they are written. The average depends on the prototypes with a gradient of zero: whatever a step
does with the histograms, the prototypes take part in it, as DistributedDataParallel expects of a parameter.

The features are (B, C, n), as feature maps lie in memory, and so is everything between them and the outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops import at_least_float32, inverse_norms, tangential


class AverageAndHistograms(torch.autograd.Function):
    """(B, C, ...) and (m, C) to the average (B, C) and the histograms (B, m)."""

    @staticmethod
    def forward(
        ctx: Any, feature_maps: Tensor, prototypes: Tensor, temperature: float, similarity: str
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        with torch.autocast(feature_maps.device.type, enabled=False):
            # The very call that AdaptiveAvgPool2d(1) is: the same bits.
            average = feature_maps.mean(tuple(range(2, feature_maps.ndim)))
            features = at_least_float32(feature_maps.flatten(2))
            directions = prototypes.to(features.dtype)
            prototype_scales = feature_scales = None
            if similarity == "cosine":
                prototype_scales = inverse_norms(directions, dim=1)
                directions = directions * prototype_scales
                feature_scales = inverse_norms(features, dim=1)
            # bmm: matmul would copy the features.
            similarities = torch.bmm(directions.expand(len(features), -1, -1), features)
            if feature_scales is not None:
                similarities *= feature_scales
            assigned = torch.softmax(similarities / temperature, dim=1)
        ctx.save_for_backward(
            feature_maps, prototypes, directions, prototype_scales, similarities, assigned, feature_scales
        )
        return average, assigned.mean(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, average_gradient: Tensor | None, histogram_gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        feature_maps, prototypes, directions, prototype_scales, similarities, assigned, feature_scales = (
            ctx.saved_tensors
        )
        num_positions = assigned.shape[2]
        spread = assigned.new_zeros(1, 1, 1) if average_gradient is None else average_gradient[..., None]
        spread = (spread / num_positions).expand(*feature_maps.shape[:2], num_positions)
        if histogram_gradient is None:
            return spread.reshape(feature_maps.shape), torch.zeros_like(prototypes), None, None

        with torch.autocast(feature_maps.device.type, enabled=False):
            features = at_least_float32(feature_maps.flatten(2))
            scaled = (histogram_gradient / (num_positions * ctx.temperature)).unsqueeze(1)
            gradient = assigned * (scaled.mT - torch.bmm(scaled, assigned))
            radial = None
            if feature_scales is not None:
                radial = (gradient * similarities).sum(1, keepdim=True) * feature_scales.square()
                gradient = gradient * feature_scales

            directions_gradient = torch.addbmm(torch.zeros_like(directions), gradient, features.mT)
            if prototype_scales is not None:
                directions_gradient = tangential(directions_gradient, directions, prototype_scales)
            if not ctx.needs_input_grad[0]:
                return None, directions_gradient.to(prototypes.dtype), None, None
            features_gradient = torch.empty_like(features)
            if radial is None:
                features_gradient.copy_(spread)
            else:
                torch.addcmul(spread.to(features.dtype), features, radial, value=-1, out=features_gradient)
            # MKL takes half as long again for directions that are a transposed view.
            left = directions.T.contiguous().expand(len(features), -1, -1)
            features_gradient.baddbmm_(left, gradient)
        features_gradient = features_gradient.reshape(feature_maps.shape).to(feature_maps.dtype)
        return features_gradient, directions_gradient.to(prototypes.dtype), None, None
