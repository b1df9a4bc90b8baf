"""Where the records of a run stand, so that a resumed run repeats none of them and loses none."""

import glob
import os
from typing import Any

RecordMark = dict[str, Any]

# The first cell of every CSV file that record-keeper writes.
_CSV_MARK = "~iteration~"


def mark_records(record_keeper: Any) -> RecordMark:
    """Saves the records and notes how far they reach.

    Args:
        record_keeper: The ``record_keeper.RecordKeeper`` of the run.

    Returns:
        A dictionary of plain Python values: the last row of each SQLite table, the size in bytes of each CSV
        file and of each TensorBoard event file.
    """
    record_keeper.save_records()
    if record_keeper.tensorboard_writer is not None:
        record_keeper.tensorboard_writer.flush()
    return {
        "hash_map": dict(record_keeper.hash_map),
        "last_rows": [_last_rows(database) for database in _databases(record_keeper)],
        "csv_files": _sizes(_csv_files(record_keeper)),
        "event_files": _sizes(_event_files(record_keeper)),
    }


def rewind_records(record_keeper: Any, mark: RecordMark) -> None:
    """Takes back what was recorded after :func:`mark_records`.

    The record-keeper's folder, and the TensorBoard writer's, have to be the run's own: record-keeper's CSV
    files and the event files that the mark does not know are deleted. In a database that several experiments
    share only the rows of this one are.

    Args:
        record_keeper: The ``record_keeper.RecordKeeper`` of the resumed run.
        mark: What :func:`mark_records` returned.
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
    if record_keeper.tensorboard_writer is not None:
        # Closed, the writer opens another file for its next event; the one that it had opened goes with the
        # rest.
        record_keeper.tensorboard_writer.close()
        _cut(_event_files(record_keeper), mark["event_files"])


def _databases(record_keeper: Any) -> list[Any]:
    writer = record_keeper.record_writer
    return [database for database in (writer.local_db, writer.global_db) if database is not None]


def _tables(database: Any) -> list[str]:
    rows = database.query("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [row["name"] for row in rows if row["name"] not in ("sqlite_sequence", "experiment_ids")]


def _last_rows(database: Any) -> dict[str, int]:
    return {
        table: database.query(f"SELECT COALESCE(MAX(id), 0) AS last FROM [{table}]")[0]["last"]
        for table in _tables(database)
    }


def _csv_files(record_keeper: Any) -> list[str]:
    paths = glob.glob(os.path.join(glob.escape(record_keeper.record_writer.folder), "*.csv"))
    return [path for path in paths if _is_written_by_record_keeper(path)]


def _is_written_by_record_keeper(path: str) -> bool:
    with open(path) as file:
        # A process that was killed may have written the beginning of the mark alone.
        return _CSV_MARK.startswith(file.read(len(_CSV_MARK)))


def _event_files(record_keeper: Any) -> list[str]:
    if record_keeper.tensorboard_writer is None:
        return []
    folder = glob.escape(record_keeper.tensorboard_writer.get_logdir())
    return glob.glob(os.path.join(folder, "events.out.tfevents.*"))


def _sizes(paths: list[str]) -> dict[str, int]:
    return {os.path.basename(path): os.path.getsize(path) for path in paths}


def _cut(paths: list[str], sizes: dict[str, int]) -> None:
    for path in paths:
        size = sizes.get(os.path.basename(path))
        if size is None:
            os.remove(path)
        elif os.path.getsize(path) > size:
            os.truncate(path, size)
