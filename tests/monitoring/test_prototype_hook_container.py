import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning.utils import common_functions as c_f
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pml_xbml.monitoring import PrototypeHookContainer

PICTURES = {
    "most_used_prototypes", "hard_assignment_maps", "prototype_use", "prototype_similarities",
    "expressed_and_actual_embeddings",
}  # fmt: skip


def read_events(run):
    events = EventAccumulator(run.tensorboard_folder, size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_pictures_are_on_tensorboard_and_in_files(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=2, picture_folder=tmp_path / "pictures")
    run.train(5)
    events = read_events(run)
    assert set(events.Tags()["images"]) == {f"pictures/{name}" for name in PICTURES}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"epoch_2", "epoch_4"}
    for name in PICTURES:
        shown = events.Images(f"pictures/{name}")
        assert [event.step for event in shown] == [2, 4]
        for event in shown:
            path = tmp_path / "pictures" / f"epoch_{event.step}" / f"{name}.png"
            with Image.open(path) as picture:
                assert picture.size == (event.width, event.height)
    seconds = events.Scalars("pictures/seconds")
    assert [event.step for event in seconds] == [2, 4]
    assert all(0 < event.value < math.inf for event in seconds)


def test_pictures_are_beside_the_models_by_default(tiny_run, tmp_path):
    tiny_run(tmp_path).train(1)
    folder = tmp_path / "saved_models" / "pictures" / "epoch_1"
    assert {path.stem for path in folder.iterdir()} == PICTURES


def test_pictures_follow_the_training_and_the_bound_of_images(tiny_run, tmp_path, monkeypatch):
    views = []
    run = tiny_run(tmp_path, num_pictured_images=8)
    monkeypatch.setattr(
        "pml_xbml.monitoring.figure_writer.draw_pictures",
        lambda view, *args: views.append((view, args)) or {},
    )
    run.train(2)
    assert [len(view.images) for view, _ in views] == [8, 8]
    assert views[0][1] == (run.loss,)
    assert not torch.equal(views[0][0].prototypes, views[1][0].prototypes)
    torch.testing.assert_close(views[1][0].prototypes, run.trunk.prototypes.detach(), rtol=0, atol=0)


def test_pictures_do_not_change_the_training(tiny_run, tmp_path):
    weights = []
    for name, interval in (("with", 1), ("without", None)):
        run = tiny_run(tmp_path / name, picture_interval=interval)
        run.train(2)
        weights.append([*run.trunk.state_dict().values(), *run.embedder.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_trunk_without_prototypes_has_no_pictures(tiny_run, tmp_path):
    run = tiny_run(tmp_path, uses_plugin=False)
    run.train(1)
    assert read_events(run).Tags()["images"] == []
    assert not os.path.exists(os.path.join(run.model_folder, "pictures"))


def test_without_the_loss_nothing_is_expressed(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    run.trainer.loss_funcs["metric_loss"] = run.loss.loss
    run.train(1)
    folder = tmp_path / "saved_models" / "pictures" / "epoch_1"
    assert {path.stem for path in folder.iterdir()} == PICTURES - {"expressed_and_actual_embeddings"}


def test_projector_on_request(tiny_run, tmp_path):
    run = tiny_run(tmp_path, projector=True, num_pictured_images=12)
    run.train(1)
    config = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    assert "validation_embeddings" in config
    (tensors,) = (tmp_path / "tensorboard").rglob("tensors.tsv")
    assert np.loadtxt(tensors).shape == (12, 4)
    (sprite,) = (tmp_path / "tensorboard").rglob("sprite.png")
    with Image.open(sprite) as thumbnails:
        assert thumbnails.size == (4 * 32, 4 * 32)


def test_model_files_are_pmls_and_load(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None)
    run.train(2)
    names = set(os.listdir(run.model_folder))
    assert {"trunk_2.pth", "embedder_2.pth", "trunk_optimizer_2.pth", "checkpoint.pth"} <= names
    assert "trunk_1.pth" not in names
    assert not any(name.endswith(".partial") for name in names)
    epoch, suffix = c_f.latest_version(run.model_folder)
    assert (epoch, suffix) == (2, 2)
    other = tiny_run(tmp_path / "other")
    assert other.hooks.load_latest_saved_models(other.trainer, run.model_folder) == 3
    for one, another in zip(run.trunk.parameters(), other.trunk.parameters(), strict=True):
        assert torch.equal(one, another)


def test_no_models_but_a_checkpoint_without_save_models(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None, save_models=False)
    run.train(1)
    assert os.listdir(run.model_folder) == ["checkpoint.pth"]


def test_without_checkpoints(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None, checkpoint_interval=None)
    run.trainer.train(1, 1)
    assert "checkpoint.pth" not in os.listdir(run.model_folder)


def test_a_run_that_patience_has_ended_is_not_trained_on(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None, patience=0)
    run.hooks.is_new_best_accuracy = lambda tester, split, epoch: (False, 0.0, 1, 1.0)
    run.train(10)
    assert run.trainer.epoch == 2
    resumed = tiny_run(tmp_path, picture_interval=None, patience=0)
    start_epoch = resumed.hooks.resume(resumed.trainer, resumed.model_folder)
    assert start_epoch > 10
    resumed.trainer.train(start_epoch, 10)
    assert not hasattr(resumed.trainer, "epoch")


def test_the_first_resume_begins_a_run(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    assert run.hooks.resume(run.trainer, run.model_folder) == 1
    assert os.listdir(run.model_folder) == ["checkpoint.pth"]


@pytest.mark.parametrize("name", ["checkpoint_interval", "picture_interval", "num_pictured_images"])
def test_refuses_numbers_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be .*at least 1.* got 0"):
        PrototypeHookContainer(None, **{name: 0})
