"""What the loss needs to know of the losses of pytorch-metric-learning that it is put around."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor

from .. import _pml

# These refuse class labels, of which the halves are made.
LOSSES_WITHOUT_LABELS = (pml_losses.ManifoldLoss, pml_losses.SelfSupervisedLoss, pml_losses.VICRegLoss)


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
    base = loss.loss if isinstance(loss, pml_losses.CrossBatchMemory) else loss
    if isinstance(base.reducer, DoNothingReducer):
        raise TypeError(
            f"{name} must reduce to one number, got {type(base).__name__} with a DoNothingReducer: choose a "
            "reducer that reduces, MeanReducer say"
        )
    if base.distance is None:
        raise TypeError(
            f"{name} must have a distance, got {type(loss).__name__}, which has none: pass the loss that it "
            "is put around"
        )


class ExpressedLoss:
    """Holds the loss of expressed samples where record-keeper does not look for children.

    As a submodule it would mix its records with those of a base loss of the same class.

    Args:
        loss: of samples with samples, without parameters, buffers or a memory.

    Raises:
        TypeError, ValueError: if it is another one.
    """

    def __init__(self, loss: Any) -> None:
        if isinstance(loss, pml_losses.CrossBatchMemory | pml_losses.MultipleLosses):
            raise TypeError(
                f"expressed_loss must be a single loss without a memory, got {type(loss).__name__}: pass "
                "ContrastiveLoss() say"
            )
        check_base_loss(loss, "expressed_loss")
        if loss.state_dict():
            raise ValueError(
                f"expressed_loss must have no parameters or buffers, got {type(loss).__name__}: pass a loss "
                "that compares samples with samples, ContrastiveLoss() say"
            )
        self.loss: torch.nn.Module = loss
        self.normalizes_embeddings = bool(loss.distance.normalize_embeddings)


def check_tuples(loss: object, indices_tuple: tuple[Tensor, ...] | None) -> None:
    """Raises a ValueError if a miner's tuples come to a loss that mines by itself."""
    if indices_tuple is None or not isinstance(loss, pml_losses.MultipleLosses):
        return
    if loss.miners:
        raise ValueError(
            "indices_tuple must be left out when MultipleLosses has miners of its own, got one of "
            f"{len(indices_tuple)} tensors"
        )
    for part in loss.losses.values() if loss.is_dict else loss.losses:
        check_tuples(part, indices_tuple)


def makes_all_pairs(loss: object) -> bool:
    """Whether a loss makes all pairs of the labels where it gets no tuples."""
    return getattr(type(loss), "compute_loss", None) is _pml.GenericPairLoss.compute_loss


def all_pairs(loss: object, labels: Tensor) -> tuple[Tensor, ...] | None:
    """The pairs that a loss would make of the labels; None if it makes none."""
    return _pml.get_all_pairs_indices(labels) if makes_all_pairs(loss) else None


def takes_references(loss: torch.nn.Module) -> bool:
    """Whether a loss accepts ``ref_emb``."""
    return not isinstance(loss, pml_losses.CrossBatchMemory | pml_losses.MultipleLosses)
