from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_metric_learning.testers import BaseTester
from pytorch_metric_learning.trainers import BaseTrainer
from pytorch_metric_learning.utils import common_functions as c_f
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ..losses import CrossBatchPrototypeLoss
from .prototype_view import PrototypeView, find_pooling, view_prototypes
from .visualize import draw_pictures, rendered, sample_images, save_picture

if TYPE_CHECKING:
    from record_keeper import RecordKeeper
    from torch.utils.tensorboard import SummaryWriter

_THUMBNAIL_SIZE = (32, 32)


class FigureWriter:
    """Makes the pictures of an epoch: as PNG files, on TensorBoard, and their cost in seconds as a record.

    Args:
        record_keeper: the ``record_keeper.RecordKeeper`` of the run; its TensorBoard writer may be None.
        num_images: how many images to look at, at most.
        token_grid: as :func:`~pml_xbml.monitoring.visualize` has it.
        projector: whether to give the embeddings to TensorBoard's projector too.
    """

    def __init__(
        self,
        record_keeper: RecordKeeper,
        num_images: int,
        token_grid: tuple[int, int] | None,
        projector: bool,
    ) -> None:
        self.record_keeper = record_keeper
        self.num_images = num_images
        self.token_grid = token_grid
        self.projector = projector

    def write(
        self,
        trainer: BaseTrainer,
        tester: BaseTester,
        dataset: Dataset[Any],
        folder: Path,
        collate_fn: Callable[..., Any] | None,
    ) -> None:
        """Makes the pictures of the epoch that is done. A trunk without prototypes has none.

        Args:
            trainer: the trainer, between two epochs.
            tester: the tester, for the device and for what it does to the items of a data set.
            dataset: the data set to look at.
            folder: the epoch's files go into ``epoch_N`` in it.
            collate_fn: as PML's hook takes it.
        """
        trunk, embedder = trainer.models["trunk"], trainer.models["embedder"]
        if find_pooling(trunk) is None:
            return
        started = time.perf_counter()
        images, labels = sample_images(dataset, self.num_images, tester.data_and_label_getter, collate_fn)
        images = c_f.to_device(images, device=tester.data_device, dtype=tester.dtype)
        view = view_prototypes(trunk, embedder, images, labels, self.token_grid, tester.batch_size)
        figures = draw_pictures(view, _find_loss(trainer))
        writer = self.record_keeper.tensorboard_writer
        for name, figure in figures.items():
            picture = rendered(figure)
            save_picture(picture, folder / f"epoch_{trainer.epoch}" / f"{name}.png")
            if writer is not None:
                writer.add_image(f"pictures/{name}", picture, trainer.epoch, dataformats="HWC")
        if self.projector and writer is not None:
            _add_to_projector(writer, view, trainer.epoch)
        cost = {"seconds": time.perf_counter() - started}
        self.record_keeper.update_records(cost, trainer.epoch, parent_name="pictures")


def _find_loss(trainer: BaseTrainer) -> CrossBatchPrototypeLoss | None:
    modules = (module for loss in trainer.loss_funcs.values() for module in loss.modules())
    return next((module for module in modules if isinstance(module, CrossBatchPrototypeLoss)), None)


def _add_to_projector(writer: SummaryWriter, view: PrototypeView, epoch: int) -> None:
    thumbnails = interpolate(view.images, _THUMBNAIL_SIZE, mode="bilinear", antialias=True)
    writer.add_embedding(
        view.embeddings,
        metadata=view.labels.tolist(),
        label_img=thumbnails,
        global_step=epoch,
        tag="validation_embeddings",
    )
