import datetime
from collections.abc import Callable, Mapping
from typing import Any

from ..monitoring import TensorBoardRecordKeeper

# What a file name holds on any file system, less ".csv" and some room.
_LONGEST_FILE_NAME = 240
# powerful-benchmarker's tables of the accuracies of all folds, by the class that joins the folds.
_JOINED_BY = {"MeanAggregator": "mean of folds", "ConcatenateEmbeddings": "ensemble"}
_STANDARD_ERROR = "SEM_"


class RecordKeeper(TensorBoardRecordKeeper):
    """:class:`~pml_xbml.monitoring.TensorBoardRecordKeeper`, as powerful-benchmarker calls it.

    - ``input_group_name_for_non_objects`` is the former name of ``parent_name``.
    - Times are recorded, which record-keeper has come to take for objects without attributes.
    - An iteration may be a string, as in powerful-benchmarker's evaluation of ensembles. It stands for the
      next row of its table, so that all that is recorded about one model is in one row.
    - Tables keep the names that they are given: powerful-benchmarker asks for them by these, while
      record-keeper would hash the long ones. TensorBoard alone has short names.
    """

    def update_records(
        self,
        record_these: Mapping[str, Any],
        global_iteration: int | str,
        custom_attr_func: Callable[[Any], dict[str, Any]] | None = None,
        parent_name: str = "",
        recursive_types: list[type] | None = None,
        input_group_name_for_non_objects: str | None = None,
    ) -> None:
        """As in ``record_keeper.RecordKeeper``.

        Args:
            record_these: what to record, by name.
            global_iteration: the iteration or epoch, or a name that stands for the table's next row.
            custom_attr_func: as in record-keeper.
            parent_name: the table of values that do not belong to an object.
            recursive_types: as in record-keeper.
            input_group_name_for_non_objects: the same as ``parent_name``.
        """
        if input_group_name_for_non_objects is not None:
            parent_name = input_group_name_for_non_objects
        for name, value in record_these.items():
            if isinstance(value, datetime.datetime):
                self.append_primitive(parent_name, name, value, global_iteration)
        super().update_records(
            {k: v for k, v in record_these.items() if not isinstance(v, datetime.datetime)},
            global_iteration,
            custom_attr_func=custom_attr_func,
            parent_name=parent_name,
            recursive_types=recursive_types,
        )

    def append_primitive(self, group: str, series: str, value: Any, global_iteration: int | str) -> None:
        """As in ``record_keeper.RecordKeeper``.

        Args:
            group: the table.
            series: the column.
            value: a number, string, time, list, array or tensor.
            global_iteration: the row.
        """
        if isinstance(global_iteration, str):
            global_iteration = self._next_row(group)
        if len(group) <= _LONGEST_FILE_NAME:
            self.append_data(group, series, value, global_iteration)
        else:
            super().append_primitive(group, series, value, global_iteration)

    def _tag(self, group: str, series: str) -> str | None:
        tag = super()._tag(group, series.removeprefix(_STANDARD_ERROR))
        if tag is None:
            return None
        joined_by, is_joined, _ = group.partition("_accuracies_")
        parts = [tag]
        if is_joined:
            parts.append(_JOINED_BY.get(joined_by, joined_by))
        if series.startswith(_STANDARD_ERROR):
            parts.append("standard error")
        return ", ".join(parts)

    def _next_row(self, table: str) -> int:
        if not self.table_exists(table):
            return 1
        count: int = self.query(f"SELECT count(*) AS rows FROM {table}")[0]["rows"]
        return count + 1
