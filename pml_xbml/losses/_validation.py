"""The checks of what comes into the loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from .. import _checks, _pml

# What every loss of pytorch-metric-learning takes besides a distance and a reducer.
OPTIONS_OF_ALL_LOSSES = ("embedding_regularizer", "embedding_reg_weight", "collect_stats")


def check_options(names: Iterable[str], loss_class: type) -> None:
    """Raises a ValueError on what belongs to another loss, and a TypeError with the nearest name on a typo.

    Args:
        names: of the further keyword arguments of a loss that has its distance and reducer from another.
        loss_class: the loss.
    """
    for name in names:
        if name in ("distance", "reducer"):
            raise ValueError(
                f"a {name} belongs to loss: pass {loss_class.__name__}(loss=SomeLoss({name}=...)), got one "
                f"on {loss_class.__name__} itself"
            )
    own = inspect.signature(loss_class).parameters
    known = [*(argument for argument in own if argument != "kwargs"), *OPTIONS_OF_ALL_LOSSES]
    _checks.check_options(names, loss_class.__name__, known)


def checked_labels(embeddings: Tensor, labels: Tensor | None) -> Tensor:
    """The labels on the embeddings' device, once both are known to go together.

    Args:
        embeddings: (batch_size, embedding_size), of floating point.
        labels: (batch_size,), of real numbers.

    Raises:
        TypeError, ValueError: if one is missing, no tensor, or of another shape.
    """
    if not torch.is_tensor(embeddings) or not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be a tensor of floating point, got {_described(embeddings)}")
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(
            "embeddings must have shape (batch_size, embedding_size), neither of them 0, got "
            f"{_described(embeddings)}"
        )
    if labels is None:
        raise ValueError("labels must be given, got None: the two halves are made of whole classes")
    if not torch.is_tensor(labels) or labels.is_complex():
        raise TypeError(f"labels must be a tensor of real numbers, got {_described(labels)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must have shape ({len(embeddings)},), one for each of the embeddings, got "
            f"{_described(labels)}"
        )
    if labels.is_floating_point() and labels.isnan().any():
        raise ValueError(f"labels must be numbers, got {int(labels.isnan().sum())} NaN among them")
    labels = labels.to(embeddings.device)
    return labels.long() if labels.dtype == torch.bool else labels


def matching_histograms(embeddings: Tensor, histograms: Tensor) -> tuple[Tensor, int]:
    """Histograms row for row as the embeddings, and of how many processes' blocks both consist.

    PML's ``DistributedLossWrapper`` gathers embeddings and labels of all processes, its own first; then the
    histograms are gathered in the same order, those of the other processes without gradient, as it does.

    Args:
        embeddings: (batch_size, embedding_size), perhaps gathered.
        histograms: (batch_size of this process, num_prototypes).

    Raises:
        TypeError, ValueError: if they do not go together.
    """
    if not torch.is_tensor(histograms) or not histograms.is_floating_point():
        raise TypeError(f"histograms must be a tensor of floating point, got {_described(histograms)}")
    if histograms.ndim != 2 or histograms.shape[1] == 0:
        raise ValueError(
            f"histograms must have shape (batch_size, num_prototypes), got {_described(histograms)}"
        )
    if histograms.device != embeddings.device:
        raise ValueError(
            f"histograms must be on the device of the embeddings, {embeddings.device}, got "
            f"{histograms.device}"
        )
    if len(histograms) == len(embeddings):
        return histograms, 1
    if num_processes() > 1 and len(embeddings) == num_processes() * len(histograms):
        return torch.cat([histograms, _pml.all_gather(histograms)]), num_processes()
    raise ValueError(
        f"histograms must have a row for each of the {len(embeddings)} embeddings, got {len(histograms)} "
        "rows. The trunk has to run once before the loss, on the images whose embeddings come: where it runs "
        "twice, as in TwoStreamMetricLoss, only the histograms of the second run are left"
    )


def num_processes() -> int:
    """Of the default process group; 1 if there is none."""
    return torch.distributed.get_world_size() if _pml.is_distributed() else 1


def finite_and_disjoint(inputs: list[Tensor], labels: Tensor | None) -> tuple[bool, bool]:
    """Whether all inputs are finite, and the first and the second half of the labels have none in common.

    Both are read in one go: with the batches of :class:`~pml_xbml.samplers.DisjointClassPairSampler` it is
    the only time that a step waits for the device, and other halves need not be looked for.

    Args:
        inputs: tensors of any shape.
        labels: (batch_size,); None if nobody asks.
    """
    # NaN and infinities are extremes too, and to look at every value takes longer.
    extremes = [extreme for values in inputs if len(values) for extreme in values.detach().aminmax()]
    is_finite = torch.stack(extremes).isfinite().all()
    if labels is None or len(labels) % 2 == 1:
        return bool(is_finite), False
    first, second = labels.chunk(2)
    are_disjoint = (first.unsqueeze(1) != second).all()
    facts = torch.stack([is_finite, are_disjoint]).tolist()
    return facts[0], facts[1]


def raise_on_non_finite(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError on values that are not finite, unless a ``GradScaler`` may be at work.

    Args:
        tensors: by the name of the argument.
    """
    device = next(iter(tensors.values())).device.type
    autocasts = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if autocasts or any(tensor.dtype == torch.float16 for tensor in tensors.values()):
        return
    described = (
        f"{name} {_described(tensor)} with {int(tensor.isfinite().logical_not().sum())} values that are not"
        for name, tensor in tensors.items()
        if not tensor.isfinite().all()
    )
    raise ValueError(f"embeddings, histograms and ref_emb must be finite, got {', '.join(described)}")


def _described(value: object) -> str:
    if torch.is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{type(value).__name__} {value!r}"
