import dataclasses
import json
import sys

import pytest
import torch
from pytorch_metric_learning import testers, trainers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_xbml.comparison import LOSSES, LoadedRun, Result, load_run, train
from pml_xbml.comparison.control_loss import ControlLoss
from pml_xbml.comparison.models import build_models, splits_of
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePoolingTrunk


@pytest.fixture
def seen(monkeypatch):
    """The images, labels and embeddings of every batch that is trained on."""
    batches = []
    calculate_loss = trainers.MetricLossOnly.calculate_loss

    def recording(trainer, batch):
        images, labels = batch
        batches.append({"images": images, "labels": labels})
        calculate_loss(trainer, batch)

    def recording_embeddings(trainer, images):
        embeddings = compute_embeddings(trainer, images)
        batches[-1]["embeddings"] = embeddings.detach()
        return embeddings

    compute_embeddings = trainers.MetricLossOnly.compute_embeddings
    monkeypatch.setattr(trainers.MetricLossOnly, "calculate_loss", recording)
    monkeypatch.setattr(trainers.MetricLossOnly, "compute_embeddings", recording_embeddings)
    return batches


@pytest.fixture
def _with_checkpoint(monkeypatch):
    """Runs keep the checkpoint that a finished one has no use for."""
    monkeypatch.setattr(sys.modules["pml_xbml.comparison.train"], "_remove_checkpoint", lambda folder: None)


def checkpoint(folder):
    return torch.load(folder / "models" / "checkpoint.pth", weights_only=True)


@pytest.fixture(scope="module")
def xml_result(tiny_xml_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xml")
    return train(tiny_xml_run, folder), folder


@pytest.mark.parametrize("loss", ["contrastive", "normalized_softmax"])
def test_plain_and_xml_see_the_same_batches_from_the_same_weights(
    tiny_run, tiny_xml_run, tmp_path, seen, loss
):
    train(dataclasses.replace(tiny_run, loss=loss), tmp_path / "plain", split="validation")
    plain_batches = seen.copy()
    seen.clear()
    train(dataclasses.replace(tiny_xml_run, loss=loss), tmp_path / "xml", split="validation")
    assert len(seen) == len(plain_batches) == tiny_run.iterations
    for plain_batch, xml_batch in zip(plain_batches, seen, strict=True):
        assert torch.equal(plain_batch["images"], xml_batch["images"])
        assert torch.equal(plain_batch["labels"], xml_batch["labels"])
    assert not torch.equal(seen[0]["labels"], seen[1]["labels"])
    # Equal embeddings of the first batch show equal weights; unequal ones of the second, another loss.
    assert torch.equal(plain_batches[0]["embeddings"], seen[0]["embeddings"])
    assert not torch.equal(plain_batches[1]["embeddings"], seen[1]["embeddings"])


@pytest.mark.parametrize("loss", ["contrastive", "proxy_anchor"])
def test_a_weight_of_zero_trains_what_plain_training_does(tiny_run, tmp_path, loss):
    plain = dataclasses.replace(tiny_run, loss=loss)
    zero = dataclasses.replace(plain, cross_batch_weight=0.0)
    plain_result = train(plain, tmp_path / "plain")
    zero_result = train(zero, tmp_path / "zero")
    assert zero_result.history == plain_result.history
    assert zero_result.test == plain_result.test
    plain_embedder, zero_embedder = (
        load_run(tmp_path / name).embedder.state_dict() for name in ("plain", "zero")
    )
    assert all(torch.equal(plain_embedder[name], zero_embedder[name]) for name in plain_embedder)


def test_a_seed_repeats_its_result_and_another_does_not(tiny_xml_run, xml_result, tmp_path):
    first, _ = xml_result
    again = train(tiny_xml_run, tmp_path / "again")
    assert (again.validation, again.test, again.history) == (first.validation, first.test, first.history)
    other = train(dataclasses.replace(tiny_xml_run, seed=1), tmp_path / "other")
    assert other.history != first.history


@pytest.mark.usefixtures("_with_checkpoint")
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_the_table_trains(tiny_xml_run, tmp_path, loss):
    run = dataclasses.replace(tiny_xml_run, loss=loss, iterations=2)
    result = train(run, tmp_path, split="validation")
    assert 0 <= result.validation["mean_average_precision_at_r"] <= 1
    state = checkpoint(tmp_path)
    is_learned = LOSSES[loss].learning_rate is not None
    assert bool(state["loss_funcs"]["metric_loss"]) == is_learned
    assert ("metric_loss_optimizer" in state["optimizers"]) == is_learned


@pytest.mark.parametrize("trunk", ["mobilenet_v3_small", "test_resnet.r160_in1k"])
def test_trunks_of_torchvision_and_timm_train(tiny_run, tiny_xml_run, tmp_path, seen, trunk):
    for run in (tiny_run, tiny_xml_run):
        run = dataclasses.replace(run, trunk=trunk, image_size=32, iterations=2)
        train(run, tmp_path / run.arm, split="validation")
    assert torch.equal(seen[0]["embeddings"], seen[2]["embeddings"])
    assert not torch.equal(seen[1]["embeddings"], seen[3]["embeddings"])


@pytest.mark.usefixtures("_with_checkpoint")
def test_proxies_are_learned(tiny_xml_run, tmp_path):
    train(dataclasses.replace(tiny_xml_run, loss="proxy_anchor", schedule="constant"), tmp_path, "validation")
    optimizer = checkpoint(tmp_path)["optimizers"]["metric_loss_optimizer"]
    assert optimizer["param_groups"][0]["lr"] == LOSSES["proxy_anchor"].learning_rate
    assert optimizer["state"][0]["step"] == 6


@pytest.mark.usefixtures("_with_checkpoint")
def test_cosine_schedule_ends_at_zero(tiny_xml_run, tmp_path):
    train(tiny_xml_run, tmp_path, split="validation")
    for name in ("trunk", "embedder"):
        optimizer = checkpoint(tmp_path)["optimizers"][f"{name}_optimizer"]
        assert optimizer["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_best_epoch_is_chosen_on_validation(xml_result):
    result, _ = xml_result
    history = result.history["mean_average_precision_at_r"]
    assert len(history) == result.run.epochs
    assert result.best_epoch == history.index(max(history)) + 1
    assert result.validation == {
        metric: values[result.best_epoch - 1] for metric, values in result.history.items()
    }


def test_loaded_run_measures_what_the_run_measured(tiny_xml_run, tmp_path):
    """The test numbers are those of the best epoch's weights, measured apart from the engine."""
    result = train(dataclasses.replace(tiny_xml_run, seed=1), tmp_path)
    assert result.best_epoch < result.run.epochs  # otherwise the last epoch's weights would do
    loaded = load_run(tmp_path)
    assert isinstance(loaded, LoadedRun)
    assert isinstance(loaded.trunk, PrototypePoolingTrunk)
    assert (loaded.run, loaded.best_epoch) == (result.run, result.best_epoch)
    tester = testers.GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0, accuracy_calculator=AccuracyCalculator(include=tuple(result.test), k=None)
    )
    accuracies = tester.test({"test": loaded.splits.test["test"]}, 0, loaded.trunk, loaded.embedder)["test"]
    assert {metric: accuracies[f"{metric}_level0"] for metric in result.test} == pytest.approx(result.test)


def test_prototypes_start_from_training_images(tiny_xml_run, tmp_path):
    chosen = train(tiny_xml_run, tmp_path / "chosen", split="validation")
    drawn = train(
        dataclasses.replace(tiny_xml_run, prototype_images=0), tmp_path / "drawn", split="validation"
    )
    assert 0 < chosen.cover_radius < 2
    assert drawn.cover_radius is None
    prototypes = [load_run(tmp_path / name).trunk.prototypes for name in ("chosen", "drawn")]
    assert not torch.allclose(*prototypes)


def test_options_reach_loss_and_pooling(tiny_xml_run, tmp_path):
    seen = []

    def make_loss(run, loss, trunk):
        made = CrossBatchPrototypeLoss(loss, pooling=trunk, cross_batch_weight=0.25, **run.loss_options)
        seen.append((made, trunk))
        return made

    run = dataclasses.replace(
        tiny_xml_run, loss_options={"ridge": 7.0}, pooling_options={"num_prototypes": 3, "temperature": 0.3}
    )
    train(run, tmp_path, split="validation", make_loss=make_loss)
    [(loss, trunk)] = seen
    assert (loss.ridge, trunk.pooling.num_prototypes, trunk.pooling.temperature) == (7.0, 3, 0.3)


def test_finished_runs_are_read_and_not_repeated(xml_result, tiny_xml_run):
    result, folder = xml_result
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    counts = []
    assert train(tiny_xml_run, folder, on_iterations=counts.append) == result
    assert sum(counts) == tiny_xml_run.iterations
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files


def test_test_classes_can_be_left_alone_and_measured_later(xml_result, tiny_xml_run, tmp_path, seen):
    complete, folder = xml_result
    without = train(tiny_xml_run, tmp_path, split="validation")
    assert without.test is None
    assert "TEST" not in "".join(path.name for path in (tmp_path / "records").iterdir())
    seen.clear()
    counts = []
    later = train(tiny_xml_run, tmp_path, on_iterations=counts.append)
    assert (later.test, later.validation, later.best_epoch) == (
        complete.test,
        complete.validation,
        complete.best_epoch,
    )
    assert Result.load(tmp_path / "result.json") == later
    assert counts == [tiny_xml_run.iterations]
    assert not seen
    assert any("TEST_vs_self" in path.name for path in (tmp_path / "records").iterdir())
    assert model_files(tmp_path) == model_files(folder)


def model_files(folder):
    return {path.name for path in (folder / "models").iterdir()}


class Killed(Exception):
    pass


@pytest.mark.parametrize("arm", ["plain", "xml"])
@pytest.mark.parametrize("killed_after", [1, 3, 6])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    tiny_run, tiny_xml_run, tmp_path, arm, killed_after
):
    run = tiny_run if arm == "plain" else tiny_xml_run
    unbroken = train(run, tmp_path / "unbroken")
    counts = []

    def kill(count):
        counts.append(count)
        if sum(counts) == killed_after:
            raise Killed

    with pytest.raises(Killed):
        train(run, tmp_path / "broken", on_iterations=kill)
    resumed_counts = []
    resumed = train(run, tmp_path / "broken", on_iterations=resumed_counts.append)
    assert dataclasses.replace(resumed, seconds=0) == dataclasses.replace(unbroken, seconds=0)
    assert sum(resumed_counts) == run.iterations
    # Whole epochs are not trained again.
    assert resumed_counts[0] == (killed_after - 1) // 2 * 2
    for name in ("trunk", "embedder"):
        states = [getattr(load_run(tmp_path / side), name).state_dict() for side in ("unbroken", "broken")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_another_run_in_the_same_folder_is_refused(xml_result, tiny_xml_run):
    _, folder = xml_result
    with pytest.raises(ValueError, match=r"iterations=6 \(now 8\)"):
        train(dataclasses.replace(tiny_xml_run, iterations=8), folder)


def test_records_and_settings_are_kept(xml_result):
    result, folder = xml_result
    assert json.loads((folder / "run.json").read_text())["seed"] == 0
    assert Result.load(folder / "result.json") == result
    records = {path.name for path in (folder / "records").iterdir()}
    assert {"logs.db", "loss_histories.csv"} <= records
    assert any("VAL_vs_self" in name for name in records)
    assert any("TEST_vs_self" in name for name in records)
    assert list(folder.glob("events.out.tfevents.*"))


def test_pml_prints_into_the_log(xml_result, tiny_run, tmp_path, capsys):
    _, folder = xml_result
    assert "total_loss" in (folder / "training.log").read_text()
    train(dataclasses.replace(tiny_run, iterations=2), tmp_path)
    assert capsys.readouterr().err == ""


def test_load_run_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*run\.json"):
        load_run(tmp_path)


def test_load_run_before_the_first_validation(tiny_run, tmp_path):
    def kill(count):
        raise Killed

    with pytest.raises(Killed):
        train(tiny_run, tmp_path, on_iterations=kill)
    with pytest.raises(ValueError, match="no model yet"):
        load_run(tmp_path)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_prototypes_have_a_learning_rate_of_their_own(tiny_xml_run, tmp_path, rate):
    starts, trunks = [], []

    def spying_loss(run, loss, trunk):
        starts.append(trunk.prototypes.detach().clone())
        trunks.append(trunk)
        return CrossBatchPrototypeLoss(loss, trunk, cross_batch_weight=run.cross_batch_weight)

    run = dataclasses.replace(tiny_xml_run, learning_rate=1e-3, prototypes_learning_rate=rate)
    train(run, tmp_path, make_loss=spying_loss)
    distance = (trunks[0].prototypes - starts[0]).abs().max()
    # Adam's first steps are as long as the learning rate.
    assert distance == 0 if rate == 0 else distance > 0.05


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_finished_run_keeps_its_best_models_once(tiny_run, tmp_path, split):
    result = train(tiny_run, tmp_path, split)
    assert model_files(tmp_path) == {f"{name}_best{result.best_epoch}.pth" for name in ("trunk", "embedder")}


def test_the_log_holds_each_progress_bar_once(xml_result):
    _, folder = xml_result
    text = (folder / "training.log").read_text()
    assert "\r" not in text
    assert len([line for line in text.splitlines() if "total_loss" in line]) == 3


@pytest.mark.usefixtures("_with_checkpoint")
def test_patience_ends_a_run_and_counts_all_of_it(tiny_run, tmp_path):
    run = dataclasses.replace(
        tiny_run,
        iterations=40,
        patience=2,
        learning_rate=0.0,
        embedder_learning_rate=0.0,
        freeze_norms=True,
    )
    counts = []
    result = train(run, tmp_path, split="validation", on_iterations=counts.append)
    # Nothing learns, so the first epoch stays the best.
    assert (result.best_epoch, len(result.history["precision_at_1"])) == (1, 3)
    assert sum(counts) == run.iterations
    resumed = []
    (tmp_path / "result.json").unlink()
    again = train(run, tmp_path, split="validation", on_iterations=resumed.append)
    assert (again.history, sum(resumed)) == (result.history, run.iterations)


def test_the_untouched_network_is_measured_as_it_is(tiny_run, tmp_path):
    run = dataclasses.replace(tiny_run, iterations=0)
    counts = []
    result = train(run, tmp_path / "untouched", on_iterations=counts.append)
    assert result.best_epoch == 0
    assert result.history == {metric: [value] for metric, value in result.validation.items()}
    trunk, _ = build_models(run, torch.device("cpu"))
    tester = testers.GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0, accuracy_calculator=AccuracyCalculator(include=tuple(result.test), k=None)
    )
    test = splits_of(run).test
    accuracies = tester.test(test, 0, trunk.eval(), torch.nn.Identity())["test"]
    assert {metric: accuracies[f"{metric}_level0"] for metric in result.test} == pytest.approx(result.test)
    validation = train(run, tmp_path / "validation", split="validation")
    assert (validation.validation, validation.test) == (result.validation, None)


def test_the_control_is_the_second_loss_on_the_embeddings(tiny_xml_run, tmp_path):
    run = dataclasses.replace(tiny_xml_run, loss="triplet", control=True)
    triplet, contrastive = (LOSSES[name].build(4, 8) for name in ("triplet", "contrastive"))
    embeddings, labels = torch.randn(8, 8), torch.arange(8) // 2
    expected = 0.7 * triplet(embeddings, labels) + 0.3 * contrastive(embeddings, labels)
    control = ControlLoss(triplet, 0.3)
    assert control(embeddings, labels) == pytest.approx(float(expected), rel=1e-5)
    result = train(run, tmp_path)
    assert not isinstance(load_run(tmp_path).trunk, PrototypePoolingTrunk)
    assert result.run.arm == "control"
