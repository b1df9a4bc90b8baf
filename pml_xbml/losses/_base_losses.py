"""What the loss needs to know of the losses of pytorch-metric-learning that it is put around."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor

from .. import _pml

# These refuse class labels, of which the halves are made.
LOSSES_WITHOUT_LABELS = (pml_losses.ManifoldLoss, pml_losses.SelfSupervisedLoss, pml_losses.VICRegLoss)


@dataclass(frozen=True)
class Term:
    """A single loss out of a tree of ``MultipleLosses``, with its weight and the tuples that it is to use."""

    loss: torch.nn.Module
    weight: float | None
    indices_tuple: tuple[Tensor, ...] | None

    @property
    def loss_without_memory(self) -> pml_losses.BaseMetricLossFunction:
        """The loss, or what a ``CrossBatchMemory`` wraps: expressed embeddings never enter a memory."""
        return self.loss.loss if isinstance(self.loss, pml_losses.CrossBatchMemory) else self.loss

    @property
    def normalizes_embeddings(self) -> bool:
        """Whether the loss's distance divides embeddings by their norm."""
        return bool(self.loss_without_memory.distance.normalize_embeddings)

    def with_all_pairs(self, labels: Tensor, ref_labels: Tensor | None) -> Term:
        """With the pairs that a loss of pairs makes of the labels where it gets none: once for both calls."""
        makes_all_pairs = getattr(type(self.loss), "compute_loss", None) is _pml.GenericPairLoss.compute_loss
        if self.indices_tuple is not None or not makes_all_pairs:
            return self
        return replace(self, indices_tuple=_pml.get_all_pairs_indices(labels, ref_labels))

    def weighted(self, value: Tensor) -> Tensor:
        return value if self.weight is None else value * self.weight


def base_loss_terms(
    loss: torch.nn.Module,
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: tuple[Tensor, ...] | None,
    weight: float | None = None,
) -> list[Term]:
    """The single losses that a loss adds up, in its order, each mined for once.

    Calling ``MultipleLosses`` for the embeddings and again for the expressed ones would mine twice, and the
    second time not on the embeddings.

    Args:
        loss: any loss that :func:`check_base_loss` passes.
        embeddings: (batch_size, embedding_size), for the miners of ``MultipleLosses``.
        labels: (batch_size,).
        indices_tuple: a miner's tuples, or None.
        weight: of the whole; None for a loss that stands alone.
    """
    if not isinstance(loss, pml_losses.MultipleLosses):
        return [Term(loss, weight, indices_tuple)]
    if loss.miners and indices_tuple is not None:
        raise ValueError(
            "indices_tuple must be left out when MultipleLosses has miners of its own, got one of "
            f"{len(indices_tuple)} tensors"
        )
    terms = []
    for key, part in loss.losses.items() if loss.is_dict else enumerate(loss.losses):
        mined = loss.get_indices_tuple(key, embeddings, labels, indices_tuple)
        part_weight = loss.weights[key] if weight is None else weight * loss.weights[key]
        terms += base_loss_terms(part, embeddings, labels, mined, part_weight)
    return terms


def check_base_loss(loss: object, name: str = "loss") -> None:
    """Raises a TypeError that says what would do, if a loss cannot be the base of the cross-batch loss."""
    if isinstance(loss, pml_losses.MultipleLosses):
        for part in loss.losses.values() if loss.is_dict else loss.losses:
            check_base_loss(part, name)
        return
    if isinstance(loss, LOSSES_WITHOUT_LABELS):
        raise TypeError(
            f"{name} must take class labels, of which the halves are made, got {type(loss).__name__}, which "
            "takes none"
        )
    if not isinstance(loss, pml_losses.BaseMetricLossFunction | pml_losses.CrossBatchMemory):
        raise TypeError(
            f"{name} must be a loss of pytorch-metric-learning (a BaseMetricLossFunction, CrossBatchMemory "
            f"or MultipleLosses), got {loss!r}. A DistributedLossWrapper goes around CrossBatchPrototypeLoss"
        )
    base = Term(loss, None, None).loss_without_memory
    if isinstance(base.reducer, DoNothingReducer):
        raise TypeError(
            f"{name} must reduce to one number, got {type(base).__name__} with a DoNothingReducer: choose a "
            "reducer that reduces, MeanReducer say"
        )
    if base.distance is None:
        raise TypeError(
            f"{name} must have a distance, by which embeddings enter the fit, got "
            f"{type(loss).__name__}, which has none: pass the loss that it is put around"
        )


def takes_references(loss: torch.nn.Module) -> bool:
    """Whether a loss accepts ``ref_emb``."""
    return not isinstance(loss, pml_losses.CrossBatchMemory | pml_losses.MultipleLosses)
