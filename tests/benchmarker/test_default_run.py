import signal

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import normalize

from pml_xbml.benchmarker.record_keeper import RecordKeeper
from pml_xbml.datasets import Glyphs
from pml_xbml.trunks import SmallTrunk

ACCURACIES = "accuracies_normalized_GlobalEmbeddingSpaceTester_level_0"
METRICS = ("mean_average_precision_at_r", "precision_at_1", "r_precision")


def embed(experiment, fold, images):
    """The embeddings of a fold's best model, by networks that are put together here."""
    (trunk_file,) = (experiment / fold / "saved_models").glob("trunk_best*.pth")
    trunk_state = torch.load(trunk_file)
    trunk = SmallTrunk()
    trunk.load_state_dict(
        {
            name.removeprefix("trunk."): value
            for name, value in trunk_state.items()
            if "prototypes" not in name
        }
    )
    embedder_state = torch.load(str(trunk_file).replace("trunk_best", "embedder_best"))
    embedder = torch.nn.Linear(128, 128)
    embedder.load_state_dict({name: embedder_state[f"net.0.{name}"] for name in ("weight", "bias")})
    trunk.eval()
    with torch.no_grad():
        return normalize(embedder(trunk(images)))


def glyphs_of(first_class, last_class):
    glyphs = Glyphs()
    num_classes = len(glyphs.characters)
    labels = torch.tensor(glyphs.labels)
    chosen = (labels >= first_class * num_classes) & (labels < last_class * num_classes)
    images = torch.tensor(glyphs.images).float()[chosen, None].expand(-1, 3, -1, -1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (images - mean) / std, labels[chosen]


def accuracies(embeddings, labels):
    return AccuracyCalculator(include=METRICS, k="max_bin_count").get_accuracy(embeddings, labels)


def test_killed_run_resumes_after_the_last_saved_epoch(experiments, logs):
    assert experiments.after_kill.returncode == -signal.SIGKILL, experiments.after_kill.output
    assert {"checkpoint.pth", "trunk_1.pth", "embedder_1.pth"} <= experiments.after_kill.models
    assert "trunk_2.pth" not in experiments.after_kill.models
    for fold in experiments.folds:
        logs_folder = experiments.first / fold / "saved_csvs"
        rows = logs.database(logs_folder / "logs.db", f"{ACCURACIES}_VAL_vs_self")
        # The untrained trunk, the untrained trunk and embedder, and the two epochs, once each.
        assert [row["epoch"] for row in rows] == [-1, 0, 1, 2]


def test_reproduced_run_equals_the_one_that_was_killed(experiments, logs):
    for name in ("config_dataset", "config_loss_and_miners", "config_protocol", "config_eval"):
        first, second = (
            (folder / "configs" / f"{name}.yaml").read_text()
            for folder in (experiments.first, experiments.second)
        )
        assert first == second
    for fold in experiments.folds:
        first, second = (
            logs.database(folder / fold / "saved_csvs" / "logs.db", f"{ACCURACIES}_VAL_vs_self")
            for folder in (experiments.first, experiments.second)
        )
        assert first == second


def test_recorded_accuracies_are_those_of_the_saved_models(experiments, logs):
    # The first half of the classes is dealt to two folds, the second is for testing.
    splits = {"VAL": [(0, 0.25), (0.25, 0.5)], "TEST": [(0.5, 1), (0.5, 1)]}
    for split, classes_of_folds in splits.items():
        expected = []
        for fold, classes in zip(experiments.folds, classes_of_folds, strict=True):
            images, labels = glyphs_of(*classes)
            rows = logs.database(
                experiments.first / fold / "saved_csvs" / "logs.db", f"{ACCURACIES}_{split}_vs_self"
            )
            (best_file,) = (experiments.first / fold / "saved_models").glob("trunk_best*.pth")
            (recorded,) = [
                row for row in rows if row["epoch"] == int(best_file.stem.removeprefix("trunk_best"))
            ]
            expected.append(accuracies(embed(experiments.first, fold, images), labels))
            for metric in METRICS:
                assert recorded[f"{metric}_level0"] == pytest.approx(expected[-1][metric], abs=1e-6)
        meta_logs = experiments.first / "meta_logs" / "saved_csvs" / "logs.db"
        mean = logs.database(meta_logs, f"MeanAggregator_{ACCURACIES}_{split}_vs_self")[-1]
        assert mean["trained_status"] == "trained"
        assert mean["timestamp"]
        for metric in METRICS:
            of_folds = [accuracy[metric] for accuracy in expected]
            assert mean[f"{metric}_level0"] == pytest.approx(np.mean(of_folds), abs=1e-6)
            standard_error = np.std(of_folds, ddof=1) / np.sqrt(2)
            assert mean[f"SEM_{metric}_level0"] == pytest.approx(standard_error, abs=1e-6)


def test_ensemble_concatenates_the_embeddings_of_both_folds(experiments, logs):
    images, labels = glyphs_of(0.5, 1)
    embeddings = torch.cat([embed(experiments.first, fold, images) for fold in experiments.folds], dim=1)
    expected = accuracies(normalize(embeddings), labels)
    rows = logs.database(
        experiments.first / "meta_logs" / "saved_csvs" / "logs.db",
        f"ConcatenateEmbeddings_{ACCURACIES}_TEST_vs_self",
    )
    assert [row["trained_status"] for row in rows] == [
        "untrained_trunk",
        "untrained_trunk_and_embedder",
        "trained",
    ]
    assert "best_epoch" not in rows[-1]
    for metric in METRICS:
        assert rows[-1][f"{metric}_level0"] == pytest.approx(expected[metric], abs=1e-6)


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        ("Test50_50_Partitions2_0", {"accuracy", "loss", "optimizer"}),
        ("Test50_50_Partitions2_1", {"accuracy", "loss", "optimizer"}),
        ("meta_logs", {"accuracy"}),
    ],
)
def test_csv_sqlite_and_tensorboard_hold_the_same_values(experiments, logs, folder, groups):
    logs_folder = experiments.first / folder / "saved_csvs"
    # The fold's own folder, whose name TensorBoard shows.
    events = EventAccumulator(str(experiments.first / folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {tag.partition("/")[0] for tag in tags} == groups
    tables = sorted(path.stem for path in logs_folder.glob("*.csv"))
    assert any(table.startswith(("accuracies", "MeanAggregator")) for table in tables)
    short_names = RecordKeeper()
    compared = set()
    for table in tables:
        in_csv, in_database = (
            logs.csv(logs_folder / f"{table}.csv"),
            logs.database(logs_folder / "logs.db", table),
        )
        assert len(in_csv) == len(in_database) > 0
        for csv_row, database_row in zip(in_csv, in_database, strict=True):
            assert csv_row == {k: "" if v is None else str(v) for k, v in database_row.items() if k != "id"}
        for column in in_database[0].keys() - {"id", "~iteration~"}:
            numbers = {
                row["~iteration~"]: row[column] for row in in_database if isinstance(row[column], int | float)
            }
            tag = short_names._tag(table, column)
            # Settings are a text, and what repeats another record is left out.
            if numbers and tag in tags:
                assert tag not in compared
                compared.add(tag)
                scalars = {event.step: event.value for event in events.Scalars(tag)}
                assert scalars == pytest.approx(numbers, rel=1e-6)
    assert compared == tags


def test_settings_are_a_text_on_tensorboard(experiments):
    for fold in experiments.folds:
        events = EventAccumulator(str(experiments.first / fold))
        events.Reload()
        (event,) = events.Tensors("settings/text_summary")
        assert "cross_batch_weight | 0.3" in event.tensor_proto.string_val[0].decode()


def test_an_experiment_is_not_overwritten(experiments, run, small_run):
    with pytest.raises(FileExistsError, match=r"first.*--resume_training"):
        run(
            "--root_experiment_folder",
            str(experiments.first.parent),
            "--experiment_name",
            "first",
            *small_run,
        )


@pytest.mark.parametrize("aggregator", ["MeanAggregator", "ConcatenateEmbeddings"])
def test_an_evaluation_prints_the_accuracies_of_its_csv_file(experiments, logs, aggregator):
    (path,) = (experiments.first / "meta_logs" / "saved_csvs").glob(f"{aggregator}_*_TEST_vs_self.csv")
    _, part = experiments.printed.split(f"first, {aggregator}, in percent:\n")
    for row in logs.csv(path):
        assert f"test, {row['trained_status'].replace('_', ' ')}:" in part
        for metric in ("precision_at_1", "r_precision", "mean_average_precision_at_r"):
            assert f"  {metric:30} {100 * float(row[metric + '_level0']):6.2f}" in part
