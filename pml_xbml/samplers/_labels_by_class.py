from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ._shuffled_passes import Integers


def label_array(labels: ArrayLike | torch.Tensor) -> NDArray[Any]:
    """The labels of a data set as an array.

    Args:
        labels: (N,) tensor, array or sequence of numbers or strings, without NaN.

    Returns:
        (N,) labels, N > 0.

    Raises:
        ValueError: if the labels are missing, not 1-D, or NaN.
    """
    if labels is None:
        raise ValueError("labels must be given, one for every sample of the data set, got None")
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu()
        labels = (labels.double() if labels.is_floating_point() else labels).numpy()
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError("labels must be 1-D, one a sample, got sequences of several lengths") from error
    if array.ndim != 1:
        raise ValueError(
            f"labels must be 1-D, one label a sample, got shape {array.shape} from {type(labels).__name__}"
        )
    if array.size == 0:
        raise ValueError("labels must be given, one for every sample of the data set, got none")
    missing = np.flatnonzero(array != array)
    if missing.size:
        raise ValueError(f"labels must not be NaN, got {array[missing[0]]} for sample {missing[0]}")
    return array


def group_by_class(labels: NDArray[Any]) -> tuple[NDArray[Any], Integers]:
    """The samples of a data set, class after class, the classes sorted by their labels.

    Args:
        labels: (N,) labels, N > 0.

    Returns:
        The indices of the samples (N,), in the smallest type that holds them, and where in them each class
        starts (C + 1,), the end of the last one included.

    Raises:
        TypeError: if the labels cannot be compared with each other.
    """
    try:
        indices = _stable_order(labels)
    except TypeError as error:
        raise TypeError(f"labels must be of one kind that can be sorted, as integers are: {error}") from error
    ordered = labels[indices]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    smallest_type = np.min_scalar_type(-len(labels))
    return indices.astype(smallest_type), np.concatenate([[0], starts, [len(labels)]])


def _stable_order(labels: NDArray[Any]) -> NDArray[Any]:
    if labels.dtype.kind in "biu":
        # Modulo 2**64 the difference is right for every integer type.
        offsets = labels.astype(np.uint64) - labels.min().astype(np.uint64)
        if offsets.max() < 2**31:
            # PyTorch's sort is several times faster than numpy's: 32 ms for a million labels, against 158 ms.
            return torch.from_numpy(offsets.astype(np.int32)).argsort(stable=True).numpy()
    return np.argsort(labels, kind="stable")
