from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..checkpoint import preserved_random_state
from ..losses import CrossBatchPrototypeLoss
from . import figures
from .prototype_view import PrototypeView, view_prototypes

_IMAGES_IN_A_ROW = 4


def look(
    trunk: torch.nn.Module,
    embedder: torch.nn.Module,
    dataset: Dataset[Any],
    folder: str | os.PathLike[str],
    num_images: int = 64,
    loss: CrossBatchPrototypeLoss | None = None,
    token_grid: tuple[int, int] | None = None,
) -> list[Path]:
    """Makes the pictures of a trained trunk, for any set of images.

    Args:
        trunk: a network with a :class:`~pml_xbml.trunks.PrototypePooling` in it.
        embedder: what follows the trunk.
        dataset: ``(image, label)`` items, images as the trunk takes them.
        folder: where the PNG files go; made if it is not there.
        num_images: how many images to look at, at most.
        loss: the loss that the trunk was trained with; one with its defaults if left out.
        token_grid: rows and columns of the tokens, for trunks that pool tokens; a square if left out.

    Returns:
        The files.

    Raises:
        ValueError: if the trunk has no ``PrototypePooling``, or the data set is empty.
    """
    images, labels = sample_images(dataset, num_images)
    device = next(trunk.parameters()).device
    view = view_prototypes(trunk, embedder, images.to(device), labels, token_grid)
    drawn = draw_pictures(view, CrossBatchPrototypeLoss() if loss is None else loss)
    return [save_picture(rendered(figure), Path(folder) / f"{name}.png") for name, figure in drawn.items()]


def sample_images(
    dataset: Any,
    num_images: int,
    data_and_label_getter: Callable[[Any], tuple[Any, Any]] = tuple,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Some images of a data set, the same ones every time.

    They are runs of four neighbors, spread evenly: data sets are mostly sorted by class, and a class is to
    be there more than once.

    Args:
        dataset: a data set with a length.
        num_images: how many, at most.
        data_and_label_getter: as PML's testers take it.
        collate_fn: as PML's testers take it.

    Returns:
        Images and labels, on the CPU. No random number is drawn for good.

    Raises:
        ValueError: if the data set is empty.
    """
    size = len(dataset)
    if size == 0:
        raise ValueError("dataset must hold at least one image, got an empty one")
    run_length = min(_IMAGES_IN_A_ROW, num_images)
    starts = np.linspace(0, size - run_length, num_images // run_length).round().astype(int)
    runs = np.unique(starts[:, None] + np.arange(run_length))
    indices = (np.arange(size) if size <= num_images else runs).tolist()
    loader = DataLoader(Subset(dataset, indices), batch_size=len(indices), collate_fn=collate_fn)
    with preserved_random_state():
        images, labels = data_and_label_getter(next(iter(loader)))
    return images, torch.as_tensor(labels)


def draw_pictures(view: PrototypeView, loss: CrossBatchPrototypeLoss | None) -> dict[str, Figure]:
    """All pictures of a view.

    Args:
        view: what to show.
        loss: whose expression of the batch to show; None where none is trained with, and nothing is
            expressed.

    Returns:
        The figures by name. Expressed embeddings are left out of a view of one class.
    """
    drawn = {
        "most_used_prototypes": figures.most_used_prototypes(view),
        "hard_assignment_maps": figures.hard_assignment_maps(view),
        "prototype_use": figures.prototype_use(view),
        "prototype_similarities": figures.prototype_similarities(view),
    }
    if loss is not None and len(view.labels.unique()) > 1:
        drawn["expressed_and_actual_embeddings"] = figures.expressed_and_actual_embeddings(view, loss)
    return drawn


def rendered(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as an image (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(picture: npt.NDArray[np.uint8], path: Path) -> Path:
    """Writes an image (H, W, 3) to a file, in a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path
