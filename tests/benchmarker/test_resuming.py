import itertools
import shutil

import pytest
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

VALIDATION = "accuracies_normalized_GlobalEmbeddingSpaceTester_level_0_VAL_vs_self"


def validated_epochs(logs, fold):
    return [row["epoch"] for row in logs.database(fold / "saved_csvs" / "logs.db", VALIDATION)]


@pytest.fixture
def copied(experiments, tmp_path):
    """A copy of a finished run, to train on."""
    copy = tmp_path / "experiments" / "copy"
    shutil.copytree(experiments.second, copy)
    return copy


@pytest.fixture
def train_on(run):
    return lambda version, epochs: run(
        "--experiment_name", "copy",
        "--resume_training", version,
        "--merge_argparse_when_resuming",
        "--num_epochs_train", str(epochs),
    )  # fmt: skip


def test_a_finished_run_is_trained_on_and_reproduced_with_both_configs(
    run, train_on, copied, experiments, logs
):
    train_on("latest", 3)
    for fold in experiments.folds:
        assert validated_epochs(logs, copied / fold) == [-1, 0, 1, 2, 3]
    assert [path.name for path in copied.glob("configs/resume*")] == ["resume_training_config_diffs_2_2"]
    folder = run("--experiment_name", "again", "--reproduce_results", str(copied)) / "experiments" / "again"
    for fold in experiments.folds:
        assert validated_epochs(logs, folder / fold) == [-1, 0, 1, 2, 3]


def test_a_run_without_a_checkpoint_resumes_from_its_models(train_on, copied, experiments, logs):
    for checkpoint in copied.glob("*/saved_models/checkpoint.pth"):
        checkpoint.unlink()
    train_on("latest", 3)
    assert validated_epochs(logs, copied / experiments.folds[0]) == [-1, 0, 1, 2, 3]


def test_the_best_model_is_trained_on(train_on, copied, experiments, logs):
    for fold in experiments.folds:
        (best,) = (copied / fold / "saved_models").glob("trunk_best*.pth")
        best.rename(best.with_name("trunk_best1.pth"))
        for name in ("embedder", "metric_loss", "trunk_optimizer", "embedder_optimizer"):
            (path,) = best.parent.glob(f"{name}_best*.pth")
            path.rename(path.with_name(f"{name}_best1.pth"))
    train_on("best", 2)
    assert validated_epochs(logs, copied / experiments.folds[0]) == [-1, 0, 1, 2, 2]


def test_death_between_models_and_checkpoint_costs_no_record(train_on, copied, experiments, logs):
    checkpoints = {path: path.read_bytes() for path in copied.glob("*/saved_models/checkpoint.pth")}
    train_on("latest", 3)
    expected = logs.database(copied / experiments.folds[0] / "saved_csvs" / "logs.db", VALIDATION)
    for path, content in checkpoints.items():
        path.write_bytes(content)
    train_on("latest", 3)
    again = logs.database(copied / experiments.folds[0] / "saved_csvs" / "logs.db", VALIDATION)
    assert [row["epoch"] for row in again] == [-1, 0, 1, 2, 3]
    assert [row["precision_at_1_level0"] for row in again] == [
        row["precision_at_1_level0"] for row in expected
    ]


def test_nothing_is_trained_twice(train_on, copied, experiments, logs):
    train_on("latest", 2)
    assert validated_epochs(logs, copied / experiments.folds[0]) == [-1, 0, 1, 2]


def test_the_best_model_is_a_trained_one(run, small_run, logs, monkeypatch):
    get_accuracy, num_calls = AccuracyCalculator.get_accuracy, itertools.count()

    def ever_worse(*arguments, **options):
        factor = 0.5 ** next(num_calls)
        accuracies = get_accuracy(*arguments, **options)
        return {name: value * factor for name, value in accuracies.items()}

    monkeypatch.setattr(AccuracyCalculator, "get_accuracy", ever_worse)
    folder = run(
        "--experiment_name", "worse",
        *small_run,
        "--num_epochs_train", "1",
        "--split_manager", "{ClassDisjointSplitManager: {num_training_partitions: 2, num_training_sets: 1}}",
    )  # fmt: skip
    fold = folder / "experiments" / "worse" / "Test50_50_Partitions2_0"
    untrained, trained = (
        row["mean_average_precision_at_r_level0"]
        for row in logs.database(fold / "saved_csvs" / "logs.db", VALIDATION)
        if row["epoch"] >= 0
    )
    assert trained < untrained
    assert [path.name for path in fold.glob("saved_models/trunk_best*.pth")] == ["trunk_best1.pth"]
    recorded = logs.database(
        folder / "experiments" / "worse" / "meta_logs" / "saved_csvs" / "logs.db",
        f"MeanAggregator_{VALIDATION}",
    )
    assert recorded[-1]["trained_status"] == "trained"
    assert recorded[-1]["mean_average_precision_at_r_level0"] == trained
