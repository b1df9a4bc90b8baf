"""Where the records of a run stand, so that a resumed run repeats none of them and loses none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .event_files import adopt_suffix, own_event_files, own_suffix

if TYPE_CHECKING:
    from record_keeper import RecordKeeper
    from record_keeper.db_utils import DBManager

RecordMark: TypeAlias = dict[str, Any]

# The first cell of every CSV file that record-keeper writes.
_CSV_MARK = "~iteration~"


def mark_records(record_keeper: RecordKeeper) -> RecordMark:
    """Saves the records and notes how far they reach.

    Args:
        record_keeper: the record keeper of the run.

    Returns:
        A dictionary of plain Python values: the last row of each SQLite table, the size in bytes of each CSV
        file and of each TensorBoard event file, and the suffix of the run's event files.
    """
    record_keeper.save_records()
    mark = {
        "hash_map": dict(record_keeper.hash_map),
        "last_rows": [_last_rows(database) for database in _databases(record_keeper)],
        "csv_files": _sizes(_csv_files(record_keeper)),
    }
    writer = record_keeper.tensorboard_writer
    if writer is not None:
        writer.flush()
        mark |= {"event_suffix": own_suffix(writer), "event_files": _sizes(own_event_files(writer))}
    return mark


def rewind_records(record_keeper: RecordKeeper, mark: RecordMark) -> None:
    """Takes back what was recorded after :func:`mark_records`.

    The record-keeper's folder has to be the run's own: its CSV files that the mark does not know are deleted.
    Of a TensorBoard folder that several runs share, only the event files of this one are touched; in a
    database that several experiments share, only the rows of this one.

    Args:
        record_keeper: the record keeper of the resumed run.
        mark: what :func:`mark_records` returned.
    """
    writer = record_keeper.record_writer
    writer.records = writer.get_empty_nested_dict()
    record_keeper.hash_map.update(mark["hash_map"])
    _cut(_csv_files(record_keeper), mark["csv_files"])
    for database, last_rows in zip(_databases(record_keeper), mark["last_rows"], strict=True):
        for table in _tables(database):
            condition, values = "id > ?", [last_rows.get(table, 0)]
            if database.is_global:
                condition += " AND experiment_id = ?"
                values.append(database.get_experiment_id(writer.experiment_name))
            database.execute(f"DELETE FROM [{table}] WHERE {condition}", values)
    if record_keeper.tensorboard_writer is not None and "event_suffix" in mark:
        adopt_suffix(record_keeper.tensorboard_writer, mark["event_suffix"])
        _cut(own_event_files(record_keeper.tensorboard_writer), mark["event_files"])


def _databases(record_keeper: RecordKeeper) -> list[DBManager]:
    writer = record_keeper.record_writer
    return [database for database in (writer.local_db, writer.global_db) if database is not None]


def _tables(database: DBManager) -> list[str]:
    rows = database.query("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [row["name"] for row in rows if row["name"] not in ("sqlite_sequence", "experiment_ids")]


def _last_rows(database: DBManager) -> dict[str, int]:
    return {
        table: database.query(f"SELECT COALESCE(MAX(id), 0) AS last FROM [{table}]")[0]["last"]
        for table in _tables(database)
    }


def _csv_files(record_keeper: RecordKeeper) -> list[Path]:
    paths = Path(record_keeper.record_writer.folder).glob("*.csv")
    return [path for path in paths if _is_written_by_record_keeper(path)]


def _is_written_by_record_keeper(path: Path) -> bool:
    with open(path) as file:
        # A process that was killed may have written the beginning of the mark alone.
        return _CSV_MARK.startswith(file.read(len(_CSV_MARK)))


def _sizes(paths: Iterable[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in paths}


def _cut(paths: Iterable[Path], sizes: Mapping[str, int]) -> None:
    for path in paths:
        size = sizes.get(path.name)
        if size is None:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
