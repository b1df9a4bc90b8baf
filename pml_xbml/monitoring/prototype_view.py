from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._evaluation import evaluation
from ..trunks import PrototypePooling


@dataclass(frozen=True)
class PrototypeView:
    """What a trunk with a :class:`~pml_xbml.trunks.PrototypePooling` makes of a sample of images.

    All tensors are on the CPU.

    Attributes:
        images: (B, 3, H, W), in [0, 1], for showing.
        labels: (B,).
        assignments: π n, (B, m, h, w): the share of each prototype in each local feature.
        embeddings: (B, D).
        prototypes: (m, C).
    """

    images: Tensor
    labels: Tensor
    assignments: Tensor
    embeddings: Tensor
    prototypes: Tensor

    @property
    def histograms(self) -> Tensor:
        """Z, (B, m)."""
        return self.assignments.mean((2, 3))

    @property
    def hard_assignments(self) -> Tensor:
        """The prototype that each local feature matches best, (B, h, w)."""
        return self.assignments.argmax(1)

    @property
    def use(self) -> Tensor:
        """The mean histogram, (m,)."""
        return self.histograms.mean(0)


def find_pooling(trunk: torch.nn.Module) -> PrototypePooling | None:
    """The pooling of a trunk, parallel wrapper or not; None if it has none."""
    return next((module for module in trunk.modules() if isinstance(module, PrototypePooling)), None)


def view_prototypes(
    trunk: torch.nn.Module,
    embedder: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    token_grid: tuple[int, int] | None = None,
    batch_size: int = 32,
) -> PrototypeView:
    """Runs a trunk in evaluation mode and notes where in the images its prototypes are found.

    Args:
        trunk: a network with a ``PrototypePooling`` in it. Its mode and its random numbers stay as they are.
        embedder: what follows the trunk.
        images: (B, channels, H, W), on the trunk's device, as the trunk takes them.
        labels: (B,), or (B, levels) of which the first level is taken.
        token_grid: rows and columns of the tokens, for trunks that pool tokens; a square if left out.
        batch_size: how many images run at once.

    Returns:
        The view.

    Raises:
        ValueError: if the trunk has no ``PrototypePooling``, or tokens do not fill the grid.
    """
    pooling = find_pooling(trunk)
    if pooling is None:
        raise ValueError(
            f"trunk must hold a PrototypePooling, got a {type(trunk).__name__} without one; wrap it in a "
            "PrototypePoolingTrunk"
        )
    assignments, embeddings = [], []

    def keep_assignments(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        assignments.append(_as_maps(pooling.assignments(inputs[0]), token_grid).cpu())

    hook = pooling.register_forward_pre_hook(keep_assignments)
    try:
        with evaluation(trunk), evaluation(embedder):
            for batch in images.split(batch_size):
                embeddings.append(embedder(trunk(batch)).float().cpu())
    finally:
        hook.remove()
    return PrototypeView(
        images=_displayable(images.cpu()),
        labels=labels.cpu() if labels.ndim == 1 else labels[:, 0].cpu(),
        assignments=torch.cat(assignments),
        embeddings=torch.cat(embeddings),
        prototypes=pooling.prototypes.detach().to("cpu", copy=True),
    )


def _as_maps(assignments: Tensor, token_grid: tuple[int, int] | None) -> Tensor:
    if assignments.ndim == 4:
        return assignments
    num_tokens = assignments.shape[2]
    side = math.isqrt(num_tokens)
    rows, columns = (side, side) if token_grid is None else token_grid
    if rows * columns != num_tokens:
        came = "None, and they make no square" if token_grid is None else f"{rows} x {columns}"
        raise ValueError(
            f"token_grid must be the rows and columns of the {num_tokens} tokens that the trunk pools, got "
            f"{came}"
        )
    return assignments.unflatten(2, (rows, columns))


def _displayable(images: Tensor) -> Tensor:
    """Images for showing: normalized ones are stretched to [0, 1], gray ones get three channels."""
    images = images.float()
    lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    is_shown_as_is = (lowest >= 0) & (highest <= 1)
    stretched = (images - lowest) / (highest - lowest).clamp(min=torch.finfo(images.dtype).tiny)
    images = torch.where(is_shown_as_is, images, stretched)
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
