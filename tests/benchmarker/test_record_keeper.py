import datetime

import pytest
import record_keeper

from pml_xbml.benchmarker.record_keeper import RecordKeeper


@pytest.fixture
def keeper(tmp_path):
    return RecordKeeper(record_writer=record_keeper.RecordWriter(str(tmp_path)))


def test_names_stand_for_the_next_rows(keeper, tmp_path, logs):
    for accuracy, name in ((0.25, "untrained_trunk"), (0.5, "trained")):
        keeper.update_records({"accuracy": accuracy, "epoch": name}, name, parent_name="one_table")
        keeper.update_records(
            {"status": name}, 1 + int(name == "trained"), input_group_name_for_non_objects="one_table"
        )
        keeper.save_records()
    rows = logs.database(tmp_path / "logs.db", "one_table")
    assert [(row["~iteration~"], row["accuracy"], row["status"]) for row in rows] == [
        (1, 0.25, "untrained_trunk"),
        (2, 0.5, "trained"),
    ]


def test_times_are_recorded(keeper, tmp_path, logs):
    time = datetime.datetime(2026, 11, 21, 13, 30, 5, 250000)
    keeper.update_records({"timestamp": time, "accuracy": 0.5}, 1, parent_name="times")
    keeper.save_records()
    (row,) = logs.database(tmp_path / "logs.db", "times")
    assert row["timestamp"] == str(time)
    assert row["accuracy"] == 0.5


def test_long_names_of_tables_are_kept(keeper):
    table = "MeanAggregator_" + "a_" * 40 + "VAL_vs_self"
    keeper.update_records({"accuracy": 0.5}, 1, parent_name=table)
    keeper.save_records()
    assert keeper.table_exists(table)


def test_names_that_no_file_can_have_are_hashed(keeper):
    table = "first_" + "a" * 300 + "_last"
    keeper.update_records({"accuracy": 0.5}, 1, parent_name=table)
    keeper.save_records()
    (hashed,) = keeper.hash_map
    assert keeper.table_exists(hashed)


@pytest.mark.parametrize(
    ("table", "column", "tag"),
    [
        ("accuracies_X_level_0_VAL_vs_self", "precision_at_1_level0", "accuracy/precision@1"),
        (
            "MeanAggregator_accuracies_X_level_0_TEST_vs_self", "SEM_r_precision_level0",
            "accuracy/R-precision (test), mean of folds, standard error",
        ),
        (
            "ConcatenateEmbeddings_accuracies_X_level_0_TEST_vs_self", "mean_average_precision_at_r_level0",
            "accuracy/MAP@R (test), ensemble",
        ),
        ("MineAggregator_accuracies_X_level_0_VAL_vs_self", "NMI_level0", "accuracy/NMI, MineAggregator"),
        ("MeanAggregator_accuracies_X_level_0_VAL_vs_self", "best_accuracy", None),
        ("trunk_optimizer_Adam", "prototypes_lr", "optimizer/prototypes lr (trunk)"),
        ("bayes_opt", "lr", "bayes_opt/lr"),
    ],
)  # fmt: skip
def test_tags(table, column, tag):
    assert RecordKeeper()._tag(table, column) == tag
