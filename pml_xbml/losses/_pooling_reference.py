from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class HoldsHistograms(Protocol):
    """What a loss can take histograms from: a PrototypePooling, a PrototypePoolingTrunk, or one's own."""

    @property
    def histograms(self) -> Tensor | None:
        """(B, m), of the last forward."""


class PoolingReference:
    """Holds a pooling where ``torch.nn.Module`` and record-keeper do not look for children.

    A pooling that were a submodule of the loss would put its parameters into the loss's optimizer, its
    weights into the loss's checkpoint and its records into the log twice.

    Args:
        pooling: what has ``histograms``, or a wrapper whose ``module`` has: DistributedDataParallel, say.
    """

    def __init__(self, pooling: HoldsHistograms | torch.nn.Module) -> None:
        holder: object = pooling
        while not hasattr(holder, "histograms") and hasattr(holder, "module"):
            holder = holder.module
        if not hasattr(holder, "histograms"):
            raise TypeError(
                "pooling must be a PrototypePoolingTrunk or PrototypePooling, or a parallel wrapper of one, "
                f"got {type(pooling).__name__}, which has no histograms"
            )
        self.target = pooling
        self._holder = getattr(holder, "pooling", holder)

    # Compiled code has no graph of autograd that could be read. A compiled loss leaves it for this.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def histograms_of(self, embeddings: Tensor) -> Tensor | None:
        """The histograms of the last forward, which must have given the embeddings.

        Returns:
            (B, m). None if that forward ran in evaluation mode and no gradient is wanted.

        Raises:
            ValueError: if there are none, and where ``PrototypePooling.histograms_of`` raises.
        """
        if hasattr(self._holder, "histograms_of"):
            checked: Tensor | None = self._holder.histograms_of(embeddings)
            return checked
        if self._holder.histograms is None:
            raise ValueError(f"pooling must hold histograms, got a {type(self._holder).__name__} with None")
        histograms: Tensor = self._holder.histograms
        return histograms
