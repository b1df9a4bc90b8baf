import contextlib
import csv
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning import samplers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pml_xbml.samplers import DisjointClassPairSampler

SIZES = {"m": 2, "batch_size": 8, "length_before_new_iter": 32}
# A forked child has all modules imported already: a start costs milliseconds, not seconds.
FORK = multiprocessing.get_context("fork")


def start(run_class, folder, num_epochs, **options):
    def train():
        os.setpgrp()
        run_class(folder, picture_interval=None, **options).train(num_epochs)

    process = FORK.Process(target=train)
    process.start()
    return process


def run_to_its_end(run_class, folder, num_epochs, **options):
    process = start(run_class, folder, num_epochs, **options)
    process.join()
    assert process.exitcode == 0


def final_state(folder):
    state = torch.load(os.path.join(folder, "saved_models", "checkpoint.pth"), weights_only=True)
    return {name: value for name, value in state.items() if name != "records"}


def assert_identical(first, second):
    """Bit for bit: NaN included, and dtypes too."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_identical(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_identical(one, other)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second


def recorded_tables(folder):
    with sqlite3.connect(os.path.join(folder, "logs", "logs.db")) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: [row[1:] for row in connection.execute(f"SELECT * FROM [{name}] ORDER BY id")]
            for name in names
            if name != "sqlite_sequence"
        }


def recorded_csv_rows(folder):
    return {
        path.name: list(csv.reader(path.open()))
        for path in Path(folder, "logs").iterdir()
        if path.suffix == ".csv"
    }


def recorded_scalars(folder):
    events = EventAccumulator(os.path.join(folder, "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: sorted((event.step, event.value) for event in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def saved_files(folder):
    return {path.name for path in Path(folder, "saved_models").iterdir() if not path.name.startswith(".")}


def assert_same_run(folder, unbroken_folder):
    assert_identical(final_state(folder), final_state(unbroken_folder))
    assert saved_files(folder) == saved_files(unbroken_folder)
    assert recorded_tables(folder) == recorded_tables(unbroken_folder)
    assert recorded_csv_rows(folder) == recorded_csv_rows(unbroken_folder)
    assert recorded_scalars(folder) == recorded_scalars(unbroken_folder)


@pytest.fixture(autouse=True, scope="module")
def everything_imported(tiny_run, tmp_path_factory):
    """PyTorch and PML import much at the first use only: what is imported here no child has to import."""
    tiny_run(tmp_path_factory.mktemp("warm_up"), picture_interval=None).train(1)


def run_and_kill(run_class, folder, delay, **options):
    process = start(run_class, folder, num_epochs=sys.maxsize, **options)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        # A loader's worker whose trainer dies while the worker is starting would stay for ever.
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("num_kills", "options"),
    [
        (20, {"save_models": False}),
        (3, {"num_workers": 2, "collect_stats": True}),
        (3, {"uses_plugin": False}),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(tiny_run, tmp_path, num_kills, options):
    started = time.monotonic()
    run_to_its_end(tiny_run, tmp_path / "timed", num_epochs=1, **options)
    longest_delay = 1.5 * (time.monotonic() - started)

    moments = random.Random(0)
    for _ in range(num_kills):
        run_and_kill(tiny_run, tmp_path / "killed", moments.uniform(0, longest_delay), **options)
    checkpoint = tmp_path / "killed" / "saved_models" / "checkpoint.pth"
    num_epochs = 1 + (final_state(tmp_path / "killed")["epoch"] if checkpoint.exists() else 0)
    run_to_its_end(tiny_run, tmp_path / "killed", num_epochs, **options)
    run_to_its_end(tiny_run, tmp_path / "unbroken", num_epochs, **options)

    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


def test_a_checkpoint_is_of_a_trainer_with_the_same_parts(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    run.hooks.resume(run.trainer, run.model_folder)
    other = tiny_run(tmp_path)
    del other.trainer.lr_schedulers["trunk_scheduler_by_iteration"]
    before = {name: value.clone() for name, value in other.trunk.state_dict().items()}
    with pytest.raises(ValueError, match=r"The trainer's lr_schedulers are .*; build the trainer as it was"):
        other.hooks.resume(other.trainer, other.model_folder)
    assert_identical(dict(other.trunk.state_dict()), before)


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        ({}, {"collect_stats": True}),
        ({"collect_stats": True}, {}),
        ({}, {"uses_plugin": False}),
    ],
)
def test_a_checkpoint_is_of_modules_that_carry_the_same(tiny_run, tmp_path, saved, resumed):
    run = tiny_run(tmp_path, **saved)
    run.hooks.resume(run.trainer, run.model_folder)
    other = tiny_run(tmp_path, **resumed)
    with pytest.raises(
        ValueError, match=r"checkpoint.pth' has .*collect_stats included, or train in another"
    ):
        other.hooks.resume(other.trainer, other.model_folder)


@pytest.mark.parametrize("is_saved_with_the_plugins", [True, False])
def test_a_checkpoint_is_of_a_sampler_of_the_same_kind(tiny_run, tmp_path, is_saved_with_the_plugins):
    runs = [tiny_run(tmp_path), tiny_run(tmp_path)]
    of_pml = samplers.MPerClassSampler(runs[0].dataset.labels, **SIZES)
    runs[is_saved_with_the_plugins].trainer.sampler = of_pml
    runs[0].hooks.resume(runs[0].trainer, runs[0].model_folder)
    name = type(runs[1].trainer.sampler).__name__
    with pytest.raises(ValueError, match=f"The trainer's sampler is a {name} and .*sampler of another kind"):
        runs[1].hooks.resume(runs[1].trainer, runs[1].model_folder)


def test_a_checkpoint_is_of_models_of_the_same_size(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    run.hooks.resume(run.trainer, run.model_folder)
    other = tiny_run(tmp_path)
    other.trainer.models["embedder"] = torch.nn.Linear(8, 3)
    with pytest.raises(
        ValueError, match=r"does not fit the trainer's models 'embedder': (?s:.*)size mismatch"
    ):
        other.hooks.resume(other.trainer, other.model_folder)


def test_the_memory_of_a_cross_batch_memory_comes_back(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None)
    run.train(2)
    resumed = tiny_run(tmp_path)
    assert resumed.hooks.resume(resumed.trainer, resumed.model_folder) == 3
    memory, restored = run.loss.loss, resumed.loss.loss
    assert (restored.queue_idx, restored.has_been_filled) == (memory.queue_idx, True)
    assert torch.equal(restored.embedding_memory, memory.embedding_memory)
    assert torch.equal(restored.label_memory, memory.label_memory)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_sampler_goes_on_whatever_the_interval(tiny_run, tmp_path, interval):
    """Three batches make an epoch of the trainer and four a pass of the sampler, and a worker reads ahead."""
    options = {"sampler_seed": 5, "num_workers": 1, "checkpoint_interval": interval}
    seen = []
    for _ in range(2):
        run = tiny_run(tmp_path, picture_interval=None, **options)
        run.trainer.data_and_label_getter = lambda batch: seen.append(batch[1].tolist()) or batch
        run.train(6 if not seen else 8)

    sampler = DisjointClassPairSampler(run.dataset.labels, seed=5, **SIZES)
    labels = [int(run.dataset.labels[index]) for _ in range(6) for index in sampler]
    assert seen == [labels[start : start + 8] for start in range(0, len(labels), 8)]


def test_a_sampler_that_shuffles_in_place_comes_back(tiny_run, tmp_path):
    runs = [tiny_run(tmp_path, picture_interval=None) for _ in range(2)]
    for run in runs:
        run.trainer.sampler = samplers.FixedSetOfTriplets(run.dataset.labels, 20)
    runs[0].train(1)
    assert runs[1].hooks.resume(runs[1].trainer, runs[1].model_folder) == 2
    triplets = [run.trainer.sampler.fixed_set_of_triplets for run in runs]
    assert isinstance(triplets[1], np.ndarray)
    np.testing.assert_array_equal(*triplets)


def test_models_in_parallel_wrappers_are_saved_without_them(tiny_run, tmp_path):
    wrapped = tiny_run(tmp_path, picture_interval=None)
    wrapped.trainer.models["embedder"] = torch.nn.DataParallel(wrapped.embedder)
    wrapped.hooks.resume(wrapped.trainer, wrapped.model_folder)
    plain = tiny_run(tmp_path)
    torch.nn.init.zeros_(plain.embedder.weight)
    plain.hooks.resume(plain.trainer, plain.model_folder)
    assert torch.equal(plain.embedder.weight, wrapped.embedder.weight)
