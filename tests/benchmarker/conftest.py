import contextlib
import csv
import functools
import io
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pytorch_metric_learning import trainers

from pml_xbml import benchmarker
from pml_xbml.datasets import glyphs

# Two folds, two epochs of three batches: the default run, small.
SMALL_RUN = [
    "--num_epochs_train", "2",
    "--trainer", "{MetricLossOnly: {iterations_per_epoch: 3, batch_size: 16}}",
    "--split_manager", "{ClassDisjointSplitManager: {num_training_partitions: 2, num_training_sets: 2}}",
    "--hook_container", "{HookContainer: {num_pictured_images: 4, picture_interval: 2}}",
    # Where no seed is given, the sampler draws one from a generator that powerful-benchmarker never seeds.
    "--sampler", "{DisjointClassPairSampler: {seed: 0}}",
]  # fmt: skip


@functools.lru_cache
def _numbers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "CATEGORIES", ("N",))
        # Past the cache of all glyphs, which other tests read.
        return glyphs._draw_classes.__wrapped__(glyphs._fonts_folder())


@contextmanager
def few_glyphs():
    """Numbers only: 30 classes, drawn in a second."""
    numbers = _numbers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "_draw_classes", lambda fonts_folder: numbers)
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_glyphs():
    with few_glyphs():
        yield


@pytest.fixture
def small_run():
    return list(SMALL_RUN)


@pytest.fixture
def run(tmp_path):
    """Runs the benchmark in a folder of the test's own, which it returns."""

    def run_here(*arguments):
        assert benchmarker.main([*folders(tmp_path), *arguments]) == 0
        return tmp_path

    return run_here


@pytest.fixture
def no_training(monkeypatch):
    def train(*_):
        raise AssertionError("training began")

    monkeypatch.setattr(trainers.BaseTrainer, "train", train)


def folders(folder):
    return ["--root_experiment_folder", f"{folder}/experiments", "--dataset_root", f"{folder}/datasets"]


def rows_of(database, table):
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]


def rows_of_csv(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def logs():
    return SimpleNamespace(database=rows_of, csv=rows_of_csv)


@pytest.fixture(scope="session")
def experiments(tmp_path_factory):
    """`first` was killed in its second epoch, resumed, and evaluated; `second` reproduces it unbroken."""
    folder = tmp_path_factory.mktemp("benchmark")
    with few_glyphs():
        return _run_experiments(folder)


def _run_experiments(folder):
    first = [*folders(folder), "--experiment_name", "first"]
    killed = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_until_killed.py"), *first, *SMALL_RUN],
        capture_output=True,
        text=True,
    )
    fold = folder / "experiments" / "first" / "Test50_50_Partitions2_0"
    after_kill = SimpleNamespace(
        returncode=killed.returncode,
        output=killed.stderr,
        models={path.name for path in fold.glob("saved_models/*")},
    )
    benchmarker.main([*first, "--resume_training", "latest"])
    torch.manual_seed(0)
    benchmarker.main(
        [*folders(folder), "--experiment_name", "second", "--reproduce_results", str(fold.parent)]
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        benchmarker.main([*first, "--evaluate", "--splits_to_eval", "[test]"])
        benchmarker.main([*first, "--evaluate_ensemble", "--splits_to_eval", "[test]"])
    return SimpleNamespace(
        first=fold.parent,
        second=fold.parent.with_name("second"),
        folds=["Test50_50_Partitions2_0", "Test50_50_Partitions2_1"],
        after_kill=after_kill,
        printed=printed.getvalue(),
    )


@pytest.fixture(scope="session")
def fake_datasets(tmp_path_factory):
    """CUB, Cars196, SOP and In-shop in their real layouts, with few images, some of them without colors."""
    root = tmp_path_factory.mktemp("datasets")
    _fake_cub(root / "cub" / "CUB_200_2011")
    _fake_cars196(root / "cars196")
    _fake_sop(root / "sop" / "Stanford_Online_Products")
    _fake_in_shop(root / "in_shop")
    return root


def _save_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(
        256, (40, 40, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
    )
    image = Image.fromarray(noise.numpy())
    (image.convert("L") if number % 5 == 0 else image).save(path)


def _fake_cub(folder):
    images, labels = [], []
    for number in range(200 * 2):
        label, path = number // 2 + 1, f"{number // 2 + 1:03d}.Bird/Bird_{number:04d}.jpg"
        _save_image(folder / "images" / path, number)
        images.append(f"{number + 1} {path}\n")
        labels.append(f"{number + 1} {label}\n")
    (folder / "images.txt").write_text("".join(images))
    (folder / "image_class_labels.txt").write_text("".join(labels))


def _fake_cars196(folder):
    names = [f"Make Model {label}" for label in range(1, 197)]
    folder.mkdir(parents=True)
    (folder / "names.csv").write_text("".join(f"{name}\n" for name in names))
    for number_of_split, split in enumerate(("train", "test")):
        rows = []
        for label, name in enumerate(names, start=1):
            _save_image(
                folder / "car_data" / "car_data" / split / name / f"{label:05d}.jpg", label + number_of_split
            )
            rows.append(f"{label:05d}.jpg,1,1,30,30,{label}\n")
        (folder / f"anno_{split}.csv").write_text("".join(rows))


def _fake_sop(folder):
    number = 0
    for split, classes in (("train", range(1, 25)), ("test", range(25, 49))):
        rows = ["image_id class_id super_class_id path\n"]
        for label in classes:
            for image in range(2):
                number += 1
                path = f"sofa_final/{label}_{image}.JPG"
                _save_image(folder / path, number)
                rows.append(f"{number} {label} 1 {path}\n")
        (folder / f"Ebay_{split}.txt").write_text("".join(rows))


def _fake_in_shop(folder):
    rows = []
    for item in range(40):
        for image in range(4):
            split = "train" if item < 24 else ("query" if image < 1 else "gallery")
            path = f"img/WOMEN/Dresses/id_{item:08d}/{image:02d}_1_front.jpg"
            _save_image(folder / "Img" / path, 4 * item + image)
            rows.append(f"{path:<70} id_{item:08d} {split}\n")
    (folder / "Eval").mkdir(parents=True)
    (folder / "Eval" / "list_eval_partition.txt").write_text(
        f"{len(rows)}\nimage_name item_id evaluation_status\n" + "".join(rows)
    )


@pytest.fixture
def getter():
    """All classes that YAML files can name, while PML lends its names."""
    from pml_xbml.benchmarker.pml_compat import pml_compat
    from pml_xbml.benchmarker.runner import SingleExperimentRunner

    with pml_compat():
        yield SingleExperimentRunner([]).pytorch_getter
