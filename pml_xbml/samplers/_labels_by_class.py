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
        raise ValueError("labels are missing: got None; give one label for every sample of the data set")
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu()
        labels = (labels.double() if labels.is_floating_point() else labels).numpy()
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(
            "labels must be 1-D, one label a sample; got sequences of several lengths"
        ) from error
    if array.ndim != 1:
        raise ValueError(
            f"labels must be 1-D, one label a sample; got shape {array.shape} from {type(labels).__name__}"
        )
    if array.size == 0:
        raise ValueError("labels are empty: give one label for every sample of the data set")
    missing = np.flatnonzero(array != array)
    if missing.size:
        raise ValueError(f"labels must not be NaN; got {array[missing[0]]} for sample {missing[0]}")
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
    smallest_type = np.min_scalar_type(-len(labels))
    if labels.dtype.kind in "biu" and int(labels.max()) - int(labels.min()) < len(labels):
        from scipy.sparse import coo_array  # slow to import, and of use here alone

        # Modulo 2**64 the difference is right for every integer type.
        offsets = (labels.astype(np.uint64) - labels.min().astype(np.uint64)).astype(smallest_type)
        samples = np.arange(len(labels), dtype=smallest_type)
        # The conversion is a counting sort: linear, and an order of magnitude faster than sorting.
        table = coo_array((np.ones(len(labels), dtype=np.int8), (offsets, samples))).tocsr()
        starts = np.append(table.indptr[:-1][np.diff(table.indptr) > 0], len(labels))
        return table.indices.astype(smallest_type), starts.astype(np.int64)
    try:
        indices = np.argsort(labels, kind="stable")
    except TypeError as error:
        raise TypeError(f"labels must be of one kind that can be sorted, as integers are: {error}") from error
    ordered = labels[indices]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return indices.astype(smallest_type), np.concatenate([[0], starts, [len(labels)]])
