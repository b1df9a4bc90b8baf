import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from pml_xbml.comparison import DEFAULT_WEIGHT, compare, plan_runs
from pml_xbml.comparison.control_loss import ITS_OWN_CONTROL, ControlLoss
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.paired_results import pair_results
from pml_xbml.comparison.python_code import python_code
from pml_xbml.losses import CrossBatchPrototypeLoss

comparison_module = sys.modules["pml_xbml.comparison.comparison"]


@pytest.fixture(scope="module")
def unbroken(tiny_run, tmp_path_factory):
    return compare(tiny_run, weights=[0.1, 0.5], num_seeds=2, out=tmp_path_factory.mktemp("unbroken"))


def test_plan(tiny_run):
    settings = dataclasses.replace(tiny_run, seed=7, loss_options={"ridge": 0.5})
    runs = plan_runs(settings, ["triplet", "contrastive", "triplet"], [0.1, 0.3], num_seeds=2)
    assert [(run.seed, run.loss, run.arm, run.cross_batch_weight) for run in runs] == [
        (seed, loss, arm, weight)
        for seed in (7, 8)
        for loss in ("triplet", "contrastive")
        for arm, weight in (("plain", None), ("xml", 0.1), ("xml", 0.3))
    ]
    assert all(bool(run.loss_options) == bool(run.pooling_options) == (run.arm == "xml") for run in runs)
    assert len({run.name for run in runs}) == len(runs)


def test_without_weights_the_default_of_the_loss(tiny_run):
    _, xml = plan_runs(tiny_run, ["triplet"], None, num_seeds=1)
    assert xml.cross_batch_weight == CrossBatchPrototypeLoss().cross_batch_weight == DEFAULT_WEIGHT


def test_plan_with_a_control(tiny_run):
    runs = plan_runs(tiny_run, ["triplet"], [0.1, 0.3], num_seeds=1, control=True)
    assert [(run.arm, run.cross_batch_weight) for run in runs] == [
        ("plain", None),
        ("xml", 0.1),
        ("control", 0.1),
        ("xml", 0.3),
        ("control", 0.3),
    ]
    assert len({run.name for run in runs}) == len(runs)


def test_contrastive_loss_is_its_own_control(tiny_run):
    runs = plan_runs(tiny_run, ["contrastive", "triplet"], [0.1], num_seeds=1, control=True)
    assert [(run.loss, run.arm) for run in runs] == [
        ("contrastive", "plain"),
        ("contrastive", "xml"),
        ("triplet", "plain"),
        ("triplet", "xml"),
        ("triplet", "control"),
    ]
    loss = LOSSES[ITS_OWN_CONTROL].build(num_classes=4, embedding_size=8)
    embeddings = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 4
    assert ControlLoss(loss, 0.3)(embeddings, labels) == pytest.approx(float(loss(embeddings, labels)))


def test_plan_of_a_pretrained_network_begins_with_the_network_as_it_is(tiny_run):
    settings = dataclasses.replace(tiny_run, trunk="resnet18", pretrained="DEFAULT")
    first, *others = plan_runs(settings, ["triplet"], [0.1], num_seeds=2)
    assert (first.arm, first.iterations) == ("untouched", 0)
    assert [run.arm for run in others] == ["plain", "xml", "plain", "xml"]


@pytest.mark.parametrize(
    ("losses", "weights", "seeds"), [([], [0.1], 1), (["triplet"], [], 1), (["triplet"], [0.1], 0)]
)
def test_nothing_to_compare(tiny_run, losses, weights, seeds):
    with pytest.raises(ValueError, match=f"at least one loss, one weight and one seed.* and {seeds}"):
        plan_runs(tiny_run, losses, weights, seeds)


def test_files(unbroken):
    rows = unbroken.results_path.read_text().splitlines()
    assert len(rows) == 1 + 6
    for picture in (unbroken.differences_path, unbroken.curves_path):
        assert picture.stat().st_size > 5000
    assert len(list(unbroken.runs_folder.glob("*/events*"))) >= 6


def test_text_has_a_table_a_weight_the_notes_and_the_verdict(unbroken):
    first, best, second, _, notes, verdict = str(unbroken).split("\n\n")
    assert first.startswith("contrastive, weight 0.1: mean of 2 seed(s)")
    assert best.startswith("Best on the validation classes, of at most 6 iterations: ")
    assert second.startswith("contrastive, weight 0.5: mean of 2 seed(s)")
    assert "paired t-test" in notes
    assert "cannot be told from noise with 2 seed(s)" in verdict
    assert unbroken.report_path.read_text() == f"{unbroken}\n"
    assert unbroken.winner is None


def test_of_five_seeds_the_text_ends_with_the_lines_of_what_won(unbroken):
    results = [
        dataclasses.replace(result, run=dataclasses.replace(result.run, seed=seed))
        for result in unbroken.results
        for seed in range(5)
        if result.run.seed == 0
    ]
    five = dataclasses.replace(unbroken, results=results, paired_results=pair_results(results))
    assert five.winner is not None
    assert str(five).endswith(f"\n\n{python_code(five.winner)}")


def test_the_table_repeats(tiny_run, unbroken, tmp_path):
    again = compare(tiny_run, weights=[0.1, 0.5], num_seeds=2, out=tmp_path, jobs=2)
    assert str(again) == str(unbroken)
    assert again.results_path.read_bytes() == unbroken.results_path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "moment"),
    [(1, "contrastive_xml_0.1_*seed-0/models/trunk_best*.pth"), (2, "contrastive_plain_seed-1/run.json")],
)
def test_killed_and_started_again_it_gives_the_same_results(tiny_run, unbroken, tmp_path, jobs, moment):
    arguments = (tiny_run, ["contrastive"], [0.1, 0.5], 2, tmp_path, jobs)
    process = multiprocessing.get_context("fork").Process(target=compare, args=arguments)
    process.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs").glob(moment)):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "results.csv").exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    compare(*arguments)
    assert (tmp_path / "results.csv").read_bytes() == unbroken.results_path.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_more_seeds_are_added_to_what_is_there(tiny_run, unbroken, tmp_path):
    folder = shutil.copytree(unbroken.folder, tmp_path / "copy")
    earlier = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    more = compare(tiny_run, weights=[0.1, 0.5], num_seeds=3, out=folder)
    assert len(more.results) == 9
    assert {path: path.stat().st_mtime_ns for path in earlier} == earlier


def test_validation_only_leaves_the_test_classes_alone_until_they_are_asked_for(tiny_run, unbroken, tmp_path):
    arguments = {"weights": [0.1, 0.5], "num_seeds": 2, "out": tmp_path}
    chosen = compare(tiny_run, **arguments, split="validation")
    assert "test" not in chosen.results_path.read_text().splitlines()[0]
    assert "on the validation classes" in str(chosen)
    assert chosen.differences_path.stat().st_size > 5000
    # Nothing is trained again for what the same runs give on the test classes.
    measured = compare(tiny_run, **arguments)
    assert measured.results_path.read_bytes() == unbroken.results_path.read_bytes()
    assert str(measured) == str(unbroken)


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_written(tiny_run, unbroken):
    before = unbroken.results_path.read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with embedding_size=8 \(now 4\)"):
        compare(
            dataclasses.replace(tiny_run, embedding_size=4), weights=[0.1], num_seeds=1, out=unbroken.folder
        )
    assert unbroken.results_path.read_bytes() == before


def test_settings_that_cannot_be_trained_with_are_mended_in_the_same_folder(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be a multiple of 2"):
        compare(dataclasses.replace(tiny_run, batch_size=6), weights=[0.1], num_seeds=1, out=tmp_path)
    assert len(compare(tiny_run, weights=[0.1], num_seeds=1, out=tmp_path).results) == 2


def test_what_may_be_a_mistake_in_the_folder_is_told(tiny_run, image_folder, tmp_path, capsys):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    (folder / "class_00" / "photo.heic").write_bytes(b"")
    compare(dataclasses.replace(tiny_run, dataset=str(folder)), num_seeds=1, out=tmp_path / "out")
    assert "\nLeft out: 1 file(s) outside of the class folders" in capsys.readouterr().out


def test_a_query_in_the_gallery_is_found_before_training(tiny_run, image_folder, tmp_path):
    for part, classes in {"train": range(6), "query": (6, 7), "gallery": (6, 7)}.items():
        for number in classes:
            name = f"class_{number:02d}"
            shutil.copytree(image_folder / name, tmp_path / "images" / part / name)
    with pytest.raises(ValueError, match="query and gallery must share no image"):
        compare(dataclasses.replace(tiny_run, dataset=str(tmp_path / "images")), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/inner"])
def test_an_output_folder_that_cannot_be_made_is_told_first(tiny_run, out, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(comparison_module, "load_splits", lambda *arguments: pytest.fail("it has started"))
    with pytest.raises(
        ValueError, match=rf"out must be a folder to write to, got '.*{out}': '.*file' is a file"
    ):
        compare(tiny_run, out=tmp_path / out)


def test_a_broken_image_is_found_before_training(tiny_run, image_folder, tmp_path):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    (folder / "class_11" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot be read; .*class_11.3\.png"):
        compare(dataclasses.replace(tiny_run, dataset=str(folder)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_finished_is_written_down_when_a_run_fails(tiny_run, tmp_path):
    compare(tiny_run, weights=[0.1], num_seeds=1, out=tmp_path)
    results = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").unlink()
    next_run = tmp_path / "runs" / "contrastive_plain_seed-1"
    next_run.mkdir()
    (next_run / "models").write_text("not a folder")
    with pytest.raises(OSError, match="models"):
        compare(tiny_run, weights=[0.1], num_seeds=2, out=tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == results
