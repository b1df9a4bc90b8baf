import csv
import sqlite3

from pytorch_metric_learning.utils import logging_presets
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pml_xbml.checkpoint.event_files import own_suffix
from pml_xbml.checkpoint.record_marks import mark_records, rewind_records


class Recorder:
    """A process that records: each one opens the same folder anew."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.record_keeper, _, self.writer = logging_presets.get_record_keeper(
            str(folder / "logs"), str(folder / "events"), **options
        )

    def record(self, steps, group="losses"):
        for step in steps:
            self.record_keeper.update_records({"value": 10.0 * step}, step, parent_name=group)
            self.record_keeper.save_records()
        self.writer.flush()

    def scalars(self, tag="losses/value"):
        events = EventAccumulator(str(self.folder / "events"))
        events.Reload()
        return sorted(event.step for event in events.Scalars(tag))

    def csv_steps(self, group="losses"):
        with open(self.folder / "logs" / f"{group}.csv") as file:
            return [row[0] for row in csv.reader(file)]

    def table_steps(self, group="losses"):
        rows = self.record_keeper.query(f"SELECT * FROM {group} ORDER BY id")
        return [row["~iteration~"] for row in rows]


def test_what_came_after_the_mark_is_taken_back_everywhere(tmp_path):
    killed = Recorder(tmp_path)
    killed.record([1, 2])
    mark = mark_records(killed.record_keeper)
    killed.record([3, 4])
    killed.record([3], group="later")
    killed.record_keeper.update_records({"value": 5.0}, 5, parent_name="losses")

    resumed = Recorder(tmp_path)
    rewind_records(resumed.record_keeper, mark)
    resumed.record([3])
    resumed.writer.close()
    assert resumed.scalars() == [1, 2, 3]
    assert resumed.csv_steps() == ["~iteration~", "1", "2", "3"]
    assert resumed.table_steps() == [1, 2, 3]
    assert resumed.table_steps("later") == []
    assert not (tmp_path / "logs" / "later.csv").exists()


def test_unsaved_records_are_saved_by_the_mark_and_forgotten_by_the_rewind(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.record_keeper.update_records({"value": 1.0}, 1, parent_name="losses")
    mark = mark_records(recorder.record_keeper)
    assert recorder.table_steps() == [1]
    recorder.record_keeper.update_records({"value": 2.0}, 2, parent_name="losses")
    rewind_records(recorder.record_keeper, mark)
    recorder.record_keeper.save_records()
    assert recorder.table_steps() == [1]


def test_a_half_written_line_is_taken_back(tmp_path):
    killed = Recorder(tmp_path)
    killed.record([1])
    mark = mark_records(killed.record_keeper)
    with open(tmp_path / "logs" / "losses.csv", "a") as file:
        file.write("2,2")
    (tmp_path / "logs" / "new.csv").write_text("~iter")
    rewind_records(Recorder(tmp_path).record_keeper, mark)
    assert killed.csv_steps() == ["~iteration~", "1"]
    assert not (tmp_path / "logs" / "new.csv").exists()


def test_other_files_stay(tmp_path):
    recorder = Recorder(tmp_path)
    mark = mark_records(recorder.record_keeper)
    (tmp_path / "logs" / "mine.csv").write_text("a,b\n1,2\n")
    (tmp_path / "events" / "notes.txt").write_text("mine")
    rewind_records(recorder.record_keeper, mark)
    assert (tmp_path / "logs" / "mine.csv").read_text() == "a,b\n1,2\n"
    assert (tmp_path / "events" / "notes.txt").read_text() == "mine"


def test_other_experiments_of_a_shared_database_stay(tmp_path):
    shared = {"global_db_path": str(tmp_path / "shared.db")}
    mine = Recorder(tmp_path / "mine", experiment_name="mine", **shared)
    other = Recorder(tmp_path / "other", experiment_name="other", **shared)
    mine.record([1])
    mark = mark_records(mine.record_keeper)
    other.record([7])
    mine.record([2])
    other.record([8])
    rewind_records(mine.record_keeper, mark)
    with sqlite3.connect(shared["global_db_path"]) as connection:
        steps = [row[0] for row in connection.execute('SELECT "~iteration~" FROM losses ORDER BY id')]
    assert steps == [1, 7, 8]


def test_shortened_names_are_remembered(tmp_path):
    group = "a_" + "long_" * 20 + "name"
    killed = Recorder(tmp_path)
    killed.record([1], group=group)
    mark = mark_records(killed.record_keeper)
    resumed = Recorder(tmp_path)
    rewind_records(resumed.record_keeper, mark)
    assert list(resumed.record_keeper.hash_map.values()) == [group]


def test_works_without_tensorboard(tmp_path):
    record_keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path))
    mark = mark_records(record_keeper)
    record_keeper.update_records({"value": 1.0}, 1, parent_name="a")
    record_keeper.save_records()
    rewind_records(record_keeper, mark)
    assert record_keeper.query("SELECT * FROM a") == []


def event_files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("events.out.tfevents.*")}


def test_event_files_of_other_runs_in_the_same_folder_stay(tmp_path):
    """Each run is killed after its mark, and resumed while the other one goes on."""
    shared = tmp_path / "shared"

    def recorder(name):
        recorder = Recorder(tmp_path / name)
        recorder.record_keeper.tensorboard_writer.close()
        recorder.record_keeper.tensorboard_writer = recorder.writer = SummaryWriter(shared)
        return recorder

    mine, other = recorder("mine"), recorder("other")
    marks = [mark_records(one.record_keeper) for one in (mine, other)]
    mine.record([1], group="mine")
    other.record([1, 2], group="other")
    marks[0] = mark_records(mine.record_keeper)
    mine.record([2, 3], group="mine")
    before = event_files(shared)

    resumed = recorder("mine")
    rewind_records(resumed.record_keeper, marks[0])
    left = event_files(shared)
    changed = {name for name in before if left.get(name) != before[name]}
    assert len(changed) == 1
    assert set(left) == set(before)
    resumed.record([2], group="mine")
    other.record([3], group="other")
    for one in (resumed, other):
        one.writer.close()
    again = recorder("mine")
    rewind_records(again.record_keeper, marks[0])

    steps = {"mine/value": [], "other/value": []}
    for path in sorted(shared.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            steps[tag] += [event.step for event in events.Scalars(tag)]
    assert steps == {"mine/value": [1], "other/value": [1, 2, 3]}


def test_what_was_written_before_the_run_stays(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.record([1], group="before")
    mark = mark_records(recorder.record_keeper)
    recorder.record([2], group="losses")
    rewind_records(recorder.record_keeper, mark)
    assert recorder.scalars("before/value") == [1]


def test_a_suffix_of_the_users_stays(tmp_path):
    writer = SummaryWriter(tmp_path / "events", filename_suffix=".mine")
    first = own_suffix(writer)
    assert first.startswith(".mine.run-")
    assert own_suffix(writer) == first
