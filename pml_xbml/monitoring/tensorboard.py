"""PML's records under short names on TensorBoard."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import record_keeper
import torch
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets

_METRICS = {
    "mean_average_precision_at_r": "MAP@R",
    "mean_average_precision": "MAP",
    "mean_reciprocal_rank": "MRR",
    "precision_at_1": "precision@1",
    "r_precision": "R-precision",
}
# "…accuracies…_level_0_VAL_vs_self", as PML's HookContainer names the table of a split.
_ACCURACIES = re.compile(r"(?:^|_)accuracies_.*_level_\w+?_(?P<split>[A-Z].*?)_vs_")
_OPTIMIZER = re.compile(r"^(?P<name>.+)_optimizer_\w+$")
# The groups of this package's classes; record-keeper ends the name of an object's table in its class.
_GROUPS = {
    "CrossBatchPrototypeLoss": "cross-batch",
    "PrototypePooling": "prototypes",
    "PrototypePoolingTrunk": "prototypes",
}
# The two terms of the loss.
_TERMS = {"metric_loss": "loss/metric", "cross_batch_loss": "loss/cross-batch"}
# What repeats another record, or is of no interest as a curve.
_LEFT_OUT = {"epoch", "best_epoch", "best_accuracy"}


class TensorBoardRecordKeeper(record_keeper.RecordKeeper):
    """A record keeper that keeps PML's names in its files and writes short ones to TensorBoard.

    The groups on TensorBoard are ``accuracy``, ``loss``, ``cross-batch``, ``prototypes`` and ``optimizer``.
    What PML's classes record of their settings (a margin, the power of a distance) is one text, ``settings``,
    in place of a flat curve each. A record that belongs to none of these keeps PML's tag.

    Args:
        tensorboard_writer: a ``torch.utils.tensorboard.SummaryWriter``; None for none.
        record_writer: a ``record_keeper.RecordWriter``.
        attributes_to_search_for: as in record-keeper; what PML's classes record if left out.
        validation_split_name: the split whose accuracies need no name on TensorBoard.
    """

    def __init__(
        self,
        tensorboard_writer: Any = None,
        record_writer: record_keeper.RecordWriter | None = None,
        attributes_to_search_for: list[str] | None = None,
        validation_split_name: str = "val",
    ) -> None:
        if attributes_to_search_for is None:
            attributes_to_search_for = c_f.list_of_recordable_attributes_list_names()
        super().__init__(tensorboard_writer, record_writer, attributes_to_search_for)
        self.validation_split_name = validation_split_name
        self._names_of_settings: set[str] = set()
        self._settings: dict[str, str] = {}
        self._group_of_tag: dict[str, str] = {}
        self._has_one_loss = False

    def update_records(
        self,
        record_these: Mapping[str, Any],
        global_iteration: int | str,
        custom_attr_func: Callable[[Any], dict[str, Any]] | None = None,
        parent_name: str = "",
        recursive_types: list[type] | None = None,
    ) -> None:
        """As in ``record_keeper.RecordKeeper``."""
        if parent_name == "loss_histories":
            # "total_loss" and one loss, which is the total.
            self._has_one_loss = len(record_these) == 2
        super().update_records(record_these, global_iteration, custom_attr_func, parent_name, recursive_types)

    def get_attr_list_for_record_keeper(self, input_obj: Any) -> list[str]:
        """As in ``record_keeper.RecordKeeper``."""
        # What changes from batch to batch is in _record_these_stats.
        self._names_of_settings.update(getattr(input_obj, "_record_these", None) or ())
        names: list[str] = super().get_attr_list_for_record_keeper(input_obj)
        return names

    def append_data(self, group_name: str, series_name: str, value: Any, iteration: int | str) -> None:
        """As in ``record_keeper.RecordKeeper``, with another tag on TensorBoard."""
        if self.record_writer:
            self.record_writer.append(group_name, series_name, value, iteration)
        if self.tensorboard_writer is None or isinstance(iteration, str) or not _is_scalar(value):
            return
        value = record_keeper.utils.convert_to_scalar(value)
        group = self.hash_map.get(group_name, group_name)
        if group == "loss_weights" or series_name in self._names_of_settings:
            # The first iteration is the only one at which a resumed run does not repeat them.
            if iteration == 0:
                self._settings[f"{group} {series_name}"] = f"{value:g}"
            return
        tag = self._tag(group, series_name)
        if tag is None:
            return
        if self._group_of_tag.setdefault(tag, group) != group:
            tag = f"{tag} ({group})"
        self.tensorboard_writer.add_scalar(tag, value, iteration)

    def save_records(self) -> None:
        """As in ``record_keeper.RecordKeeper``."""
        super().save_records()
        if self.tensorboard_writer is not None and self._settings:
            self.tensorboard_writer.add_text("settings", _table(self._settings), 0)
            self._settings = {}

    def record_run_settings(self, settings: Mapping[str, Any], metrics: Iterable[str] = ()) -> None:
        """Gives the settings of a run to TensorBoard: as a text, and to its HParams tab.

        Call it once, at the beginning of a run.

        Args:
            settings: by name. What is no number, string or bool is shown as text.
            metrics: PML's names of the accuracies to show beside them, validation and test.
        """
        if self.tensorboard_writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        simple = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
            if value is not None
        }
        names = [f"accuracy/{_METRICS.get(metric, _words(metric))}" for metric in metrics]
        tags = [*names, *(f"{name} (test)" for name in names)]
        self.tensorboard_writer.add_text("settings of the run", _table(simple), 0)
        experiment, session, _ = hparams(simple, dict.fromkeys(tags, 0.0))
        for summary in (experiment, session):
            self.tensorboard_writer.file_writer.add_summary(summary)

    def _tag(self, group: str, series: str) -> str | None:
        """The short tag of a record; None for one that is not shown."""
        accuracies = _ACCURACIES.search(group)
        if accuracies is not None:
            metric, _, level = series.partition("_level")
            split = accuracies["split"].lower()
            if metric in _LEFT_OUT:
                return None
            name = f"accuracy/{_METRICS.get(metric, _words(metric))}"
            # "0" is the level of labels without a hierarchy.
            name += f", level {level}" if level not in ("", "0") else ""
            return name if split == self.validation_split_name.lower() else f"{name} ({split})"
        if group == "loss_histories":
            if series == "total_loss":
                return "loss/total"
            return None if self._has_one_loss else f"loss/{_words(series)}"
        if group == "pictures":
            return None
        optimizer = _OPTIMIZER.match(group)
        if optimizer is not None:
            name = "learning rate" if series == "lr" else _words(series)
            return f"optimizer/{name} ({_words(optimizer['name'])})"
        short_group = _GROUPS.get(group.rpartition("_")[2])
        if short_group is None:
            return f"{group}/{series}"
        return _TERMS.get(series, f"{short_group}/{_words(series)}")


def get_record_keeper(
    record_folder: str | Path, tensorboard_folder: str | Path | None = None
) -> TensorBoardRecordKeeper:
    """What PML's ``logging_presets.get_record_keeper`` makes, with short names on TensorBoard.

    Args:
        record_folder: where the CSV files and the SQLite database go, under PML's names.
        tensorboard_folder: where the event files go; None for none. TensorBoard names the run after its path
            below ``--logdir``.

    Returns:
        The record keeper. Close its ``tensorboard_writer`` at the end.
    """
    _, record_writer, tensorboard_writer = logging_presets.get_record_keeper(
        str(record_folder), None if tensorboard_folder is None else str(tensorboard_folder)
    )
    return TensorBoardRecordKeeper(tensorboard_writer, record_writer)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    if isinstance(value, np.ndarray):
        return value.size == 1
    return isinstance(value, numbers.Real) or (isinstance(value, list | tuple) and len(value) == 1)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(values: Mapping[str, Any]) -> str:
    """Values by name, as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
