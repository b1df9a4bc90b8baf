from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_metric_learning.testers import BaseTester
from pytorch_metric_learning.trainers import BaseTrainer
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.logging_presets import HookContainer
from torch.utils.data import Dataset

from ..checkpoint import Checkpoint, atomic_file
from .figure_writer import FigureWriter

if TYPE_CHECKING:
    from record_keeper import RecordKeeper


class PrototypeHookContainer(HookContainer):
    """PML's hooks, with checkpoints that a killed run resumes from bit for bit, and with pictures.

    Everything that :class:`~pytorch_metric_learning.utils.logging_presets.HookContainer` does is done, and
    its model files keep their names; but each file is written whole or not at all. In addition one file,
    ``checkpoint.pth`` in the model folder, holds the state of the whole run (see
    :class:`~pml_xbml.checkpoint.checkpoint.Checkpoint`).

    After an epoch it draws what the prototypes look at in a few validation images: to TensorBoard and as
    PNG files (see :func:`~pml_xbml.monitoring.look`). What that took is recorded as ``pictures/seconds``. A
    trunk without a :class:`~pml_xbml.trunks.PrototypePooling` has no pictures.

    Args:
        record_keeper: as in PML.
        record_group_name_prefix: as in PML.
        primary_metric: as in PML.
        validation_split_name: as in PML.
        save_models: as in PML: whether to keep the latest and the best models in files of their own.
            Checkpoints do not depend on it.
        log_freq: as in PML.
        checkpoint_interval: Make a checkpoint after every so many epochs, and after the one that patience
            ends training with. ``None``: never.
        picture_interval: Make pictures after every so many epochs. ``None``: never.
        picture_folder: where the PNG files go, in a folder an epoch; ``pictures`` in the model folder if left
            out.
        num_pictured_images: how many validation images are looked at, at most.
        token_grid: rows and columns of the tokens, for trunks that pool tokens; a square if left out.
        projector: whether to give the pictured images' embeddings to TensorBoard's projector too.

    Raises:
        ValueError: if an interval, or the number of images, is less than 1.

    Example:
        A script that is started again after it was killed goes on where it was::

            hooks = PrototypeHookContainer(record_keeper)
            trainer = trainers.MetricLossOnly(
                …, end_of_iteration_hook=hooks.end_of_iteration_hook,
                end_of_epoch_hook=hooks.end_of_epoch_hook(tester, dataset_dict, "saved_models"),
            )
            start_epoch = hooks.resume(trainer, "saved_models")
            trainer.train(start_epoch, num_epochs)
    """

    def __init__(
        self,
        record_keeper: RecordKeeper,
        record_group_name_prefix: str | None = None,
        primary_metric: str = "mean_average_precision_at_r",
        validation_split_name: str = "val",
        save_models: bool = True,
        log_freq: int = 50,
        checkpoint_interval: int | None = 1,
        picture_interval: int | None = 1,
        picture_folder: str | os.PathLike[str] | None = None,
        num_pictured_images: int = 64,
        token_grid: tuple[int, int] | None = None,
        projector: bool = False,
    ) -> None:
        for name, interval in (
            ("checkpoint_interval", checkpoint_interval),
            ("picture_interval", picture_interval),
        ):
            if interval is not None and interval < 1:
                raise ValueError(f"{name} must be a number of epochs, at least 1, or None, got {interval}")
        if num_pictured_images < 1:
            raise ValueError(f"num_pictured_images must be at least 1, got {num_pictured_images}")
        super().__init__(
            record_keeper,
            record_group_name_prefix=record_group_name_prefix,
            primary_metric=primary_metric,
            validation_split_name=validation_split_name,
            save_models=save_models,
            log_freq=log_freq,
        )
        self.checkpoint_interval = checkpoint_interval
        self.picture_interval = picture_interval
        self.picture_folder = picture_folder
        self._picture_writer = FigureWriter(record_keeper, num_pictured_images, token_grid, projector)
        self._checkpoints: dict[str, Checkpoint] = {}

    def end_of_epoch_hook(
        self,
        tester: BaseTester,
        dataset_dict: Mapping[str, Dataset[Any]],
        model_folder: str,
        test_interval: int = 1,
        patience: int | None = None,
        splits_to_eval: Sequence[tuple[str, list[str]]] | None = None,
        test_collate_fn: Callable[..., Any] | None = None,
    ) -> Callable[[BaseTrainer], bool]:
        """PML's hook, followed by the pictures and the checkpoint.

        Args:
            tester: as in PML.
            dataset_dict: as in PML.
            model_folder: as in PML; the folder of the checkpoint too.
            test_interval: as in PML.
            patience: as in PML.
            splits_to_eval: as in PML.
            test_collate_fn: as in PML.

        Returns:
            The function to give to a trainer as ``end_of_epoch_hook``.
        """
        test_and_save = super().end_of_epoch_hook(
            tester, dataset_dict, model_folder, test_interval, patience, splits_to_eval, test_collate_fn
        )
        dataset = dataset_dict.get(self.validation_split_name)
        folder = Path(model_folder, "pictures") if self.picture_folder is None else Path(self.picture_folder)

        def actual_hook(trainer: BaseTrainer) -> bool:
            continue_training: bool = test_and_save(trainer)
            if _is_due(self.picture_interval, trainer.epoch) and dataset is not None:
                self._picture_writer.write(trainer, tester, dataset, folder, test_collate_fn)
            checkpoint = self._checkpoint(model_folder)
            checkpoint.count_epoch(trainer)
            is_last = self.checkpoint_interval is not None and not continue_training
            if is_last or _is_due(self.checkpoint_interval, trainer.epoch):
                checkpoint.save(trainer, trainer.epoch, is_finished=not continue_training)
                checkpoint.restart_loader(trainer)
            return continue_training

        return actual_hook

    def resume(self, trainer: BaseTrainer, model_folder: str) -> int:
        """Goes on from the folder's checkpoint; where there is none, makes one of the run's beginning.

        Call it last before ``trainer.train``: it sets the state of the random generators. Records that were
        made after the checkpoint are taken back (see
        :func:`~pml_xbml.checkpoint.record_marks.rewind_records`).

        Args:
            trainer: a trainer, built as the one that made the checkpoint.
            model_folder: the folder that was given to :meth:`end_of_epoch_hook`.

        Returns:
            The ``start_epoch`` for ``trainer.train``. Where patience has ended the training it is beyond any
            number of epochs, so that ``trainer.train`` does nothing.

        Raises:
            ValueError: if the trainer is not built as the one that made the checkpoint.
        """
        os.makedirs(model_folder, exist_ok=True)
        checkpoint = self._checkpoint(model_folder)
        if not checkpoint.exists():
            checkpoint.save(trainer, epoch=0)
            checkpoint.restart_loader(trainer)
            return 1
        epoch, is_finished = checkpoint.load(trainer)
        if is_finished:
            c_f.LOGGER.info("Training had ended with epoch %d: validation accuracy had plateaued.", epoch)
            return sys.maxsize
        c_f.LOGGER.info("Resuming after epoch %d", epoch)
        return epoch + 1

    def save_models(
        self,
        trainer: BaseTrainer,
        model_folder: str,
        curr_suffix: int | str,
        prev_suffix: int | str | None = None,
    ) -> None:
        """PML's files of models, each written whole or not at all; the former ones go when all are there."""
        if not self.do_save_models:
            return
        all_objects = [getattr(trainer, attribute, {}) for attribute in self.saveable_trainer_objects]
        for objects in all_objects:
            for name, obj in objects.items():
                with atomic_file(c_f.modelpath_creator(model_folder, name, curr_suffix)) as file:
                    c_f.save_model(obj, file)
        if prev_suffix is not None:
            for objects in all_objects:
                c_f.delete_dict_of_models(objects, prev_suffix, model_folder)

    def _checkpoint(self, model_folder: str) -> Checkpoint:
        path = os.path.join(model_folder, "checkpoint.pth")
        return self._checkpoints.setdefault(path, Checkpoint(path, self.record_keeper))


def _is_due(interval: int | None, epoch: int) -> bool:
    return interval is not None and epoch % interval == 0
