"""What a user sees on TensorBoard of a run that this package starts."""

import functools
import sqlite3

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.monitoring import TensorBoardRecordKeeper, get_record_keeper
from pml_xbml.trunks import PrototypePooling


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture
def short_run(tiny_run):
    return functools.partial(tiny_run, short_tags=True, picture_interval=None)


def test_a_run_has_a_handful_of_groups_with_short_tags(short_run, tmp_path):
    run = short_run(tmp_path, collect_stats=True)
    run.train(2)
    tags = set(events_of(run.tensorboard_folder).Tags()["scalars"])
    assert {tag.partition("/")[0] for tag in tags} == {
        "accuracy", "loss", "cross-batch", "prototypes", "optimizer",
    }  # fmt: skip
    assert tags >= {
        "accuracy/precision@1", "loss/total", "loss/metric", "loss/cross-batch",
        "prototypes/perplexity", "prototypes/dead prototypes", "cross-batch/single class fraction",
        "optimizer/learning rate (trunk)", "optimizer/learning rate (embedder)",
    }  # fmt: skip
    of_loss = {f"cross-batch/{name.replace('_', ' ')}" for name in run.loss._record_these_stats}
    terms = {"cross-batch/metric loss", "cross-batch/cross batch loss"}
    assert {tag for tag in tags if tag.startswith("cross-batch/")} == of_loss - terms
    assert all("_" not in tag and len(tag) <= 40 for tag in tags)


def test_a_plain_run_needs_no_more(short_run, tmp_path):
    run = short_run(tmp_path, uses_plugin=False)
    run.train(1)
    assert set(events_of(run.tensorboard_folder).Tags()["scalars"]) == {
        "accuracy/precision@1", "loss/total",
        "optimizer/learning rate (trunk)", "optimizer/learning rate (embedder)",
    }  # fmt: skip


def test_values_are_those_of_the_records_under_pmls_names(short_run, tmp_path):
    run = short_run(tmp_path)
    run.train(3)
    events = events_of(run.tensorboard_folder)
    table = run.hooks.record_group_name(run.tester, "val")
    pairs = {
        "loss/total": ("loss_histories", "total_loss"),
        "accuracy/precision@1": (table, "precision_at_1_level0"),
    }
    for tag, (name, column) in pairs.items():
        with sqlite3.connect(tmp_path / "logs" / "logs.db") as connection:
            rows = connection.execute(f'SELECT "~iteration~", {column} FROM {name} ORDER BY id').fetchall()
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in shown] == [step for step, _ in rows]
        assert [value for _, value in shown] == pytest.approx([value for _, value in rows])


def test_settings_are_one_text_also_of_a_run_that_was_resumed(short_run, tmp_path):
    for num_epochs in (1, 2):
        run = short_run(tmp_path)
        run.train(num_epochs)
    (event,) = events_of(run.tensorboard_folder).Tensors("settings/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 0
    assert "| metric_loss_CrossBatchPrototypeLoss cross_batch_weight | 0.3 |" in text
    assert "ContrastiveLoss pos_margin | 0 |" in text
    assert "| loss_weights metric_loss | 1 |" in text


@pytest.mark.parametrize(
    ("group", "series", "tag"),
    [
        ("accuracies_normalized_X_level_0_VAL_vs_self", "r_precision_level0", "accuracy/R-precision"),
        ("accuracies_X_level_0_VAL_vs_self", "mean_average_precision_at_r_level0", "accuracy/MAP@R"),
        ("accuracies_X_level_0_QUERY_vs_GALLERY", "precision_at_1_level0", "accuracy/precision@1 (query)"),
        ("fold_1_accuracies_X_level_0_TEST_vs_self", "NMI_level0", "accuracy/NMI (test)"),
        ("accuracies_X_level_all_VAL_vs_self", "precision_at_1_level1", "accuracy/precision@1, level 1"),
        ("accuracies_X_level_0_VAL_vs_self", "epoch", None),
        ("accuracies_X_level_0_VAL_vs_self", "best_accuracy", None),
        ("loss_histories", "classifier_loss", "loss/classifier loss"),
        ("tuple_miner_BatchHardMiner", "num_pos_pairs", "tuple_miner_BatchHardMiner/num_pos_pairs"),
        ("trunk_PrototypePoolingTrunk", "lemma_gap", "prototypes/lemma gap"),
        ("metric_loss_optimizer_Adam", "lr", "optimizer/learning rate (metric loss)"),
    ],
)  # fmt: skip
def test_tags(group, series, tag):
    assert TensorBoardRecordKeeper()._tag(group, series) == tag


def test_long_names_are_told_by_their_whole(tmp_path):
    keeper = get_record_keeper(tmp_path / "records", tmp_path / "run")
    group = "accuracies_" + "a_long_name_" * 8 + "level_0_TEST_vs_self"
    keeper.update_records({"precision_at_1_level0": 0.5}, 1, parent_name=group)
    keeper.tensorboard_writer.close()
    assert events_of(tmp_path / "run").Tags()["scalars"] == ["accuracy/precision@1 (test)"]


@pytest.mark.parametrize(
    ("value", "is_shown"),
    [(1, True), (np.array(0.5), True), (torch.tensor([2.0]), True), ([1.5], True),
     ("1", False), ([1, 2], False), (np.zeros(2), False)],
)  # fmt: skip
def test_numbers_are_shown_whatever_their_type(tmp_path, value, is_shown):
    keeper = get_record_keeper(tmp_path / "records", tmp_path / "run")
    keeper.update_records({"total_loss": value}, 0, parent_name="loss_histories")
    keeper.tensorboard_writer.close()
    assert events_of(tmp_path / "run").Tags()["scalars"] == (["loss/total"] if is_shown else [])


def test_two_losses_have_two_tags(tmp_path):
    keeper = get_record_keeper(tmp_path / "records", tmp_path / "run")
    pooling = PrototypePooling(3, 2)
    both = {name: CrossBatchPrototypeLoss(pooling=pooling, collect_stats=True) for name in ("near", "far")}
    for loss in both.values():
        loss(torch.randn(4, 3), torch.arange(4) // 2, histograms=torch.rand(4, 2))
    loss = losses.MultipleLosses(both)
    keeper.update_records({"metric_loss": loss}, 0, recursive_types=[torch.nn.Module, dict])
    keeper.tensorboard_writer.close()
    tags = events_of(tmp_path / "run").Tags()["scalars"]
    assert sum(tag.startswith("loss/metric") for tag in tags) == 2


def test_settings_and_accuracies_are_hparams(tmp_path):
    keeper = get_record_keeper(tmp_path / "records", tmp_path / "run")
    settings = {"loss": "contrastive", "seed": 3, "options": {"a": 1}, "root": None}
    keeper.record_run_settings(settings, ["mean_average_precision_at_r"])
    keeper.tensorboard_writer.close()
    metadata = events_of(tmp_path / "run").SummaryMetadata
    start, experiment = (
        plugin_data_pb2.HParamsPluginData.FromString(metadata(f"_hparams_/{name}").plugin_data.content)
        for name in ("session_start_info", "experiment")
    )
    shown = start.session_start_info.hparams
    assert set(shown) == {"loss", "seed", "options"}
    assert (shown["seed"].number_value, shown["loss"].string_value) == (3, "contrastive")
    metrics = [info.name.tag for info in experiment.experiment.metric_infos]
    assert metrics == ["accuracy/MAP@R", "accuracy/MAP@R (test)"]


def test_without_tensorboard_there_are_the_files_alone(tmp_path):
    keeper = get_record_keeper(tmp_path / "records")
    keeper.record_run_settings({"seed": 1})
    keeper.update_records({"total_loss": 0.5, "metric_loss": 0.5}, 0, parent_name="loss_histories")
    keeper.save_records()
    assert (tmp_path / "records" / "loss_histories.csv").exists()


def test_pmls_record_keeper_keeps_pmls_tags(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None)
    assert isinstance(run.writer, SummaryWriter)
    run.train(1)
    tags = events_of(run.tensorboard_folder).Tags()["scalars"]
    assert "loss_histories/total_loss" in tags
    assert not any(tag.startswith("accuracy/") for tag in tags)
