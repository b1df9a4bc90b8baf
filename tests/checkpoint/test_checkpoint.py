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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pml_xbml.checkpoint import Checkpoint

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


@pytest.mark.slow
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
    with pytest.raises(
        ValueError, match=r"the trainer's lr_schedulers must be .*; build the trainer as it was"
    ):
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
    with pytest.raises(ValueError, match=r"the trainer must carry .*as it was.*collect_stats included"):
        other.hooks.resume(other.trainer, other.model_folder)


def test_a_checkpoint_is_of_models_of_the_same_size(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    run.hooks.resume(run.trainer, run.model_folder)
    other = tiny_run(tmp_path)
    other.trainer.models["embedder"] = torch.nn.Linear(8, 3)
    with pytest.raises(ValueError, match=r"the trainer's models 'embedder' must fit (?s:.*)size mismatch"):
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


def test_models_in_parallel_wrappers_are_saved_without_them(tiny_run, tmp_path):
    wrapped = tiny_run(tmp_path, picture_interval=None)
    wrapped.trainer.models["embedder"] = torch.nn.DataParallel(wrapped.embedder)
    wrapped.hooks.resume(wrapped.trainer, wrapped.model_folder)
    plain = tiny_run(tmp_path)
    torch.nn.init.zeros_(plain.embedder.weight)
    plain.hooks.resume(plain.trainer, plain.model_folder)
    assert torch.equal(plain.embedder.weight, wrapped.embedder.weight)


class _Mutable:
    pass


def test_numpy_numbers_in_optimizers_come_back_as_they_were(tiny_run, tmp_path):
    runs = [tiny_run(tmp_path, picture_interval=None) for _ in range(2)]
    runs[0].trainer.optimizers["trunk_optimizer"] = torch.optim.Adam(
        runs[0].trunk.parameters(), lr=np.float64(0.02), weight_decay=np.float32(0.1)
    )
    for run in runs:
        run.hooks.resume(run.trainer, run.model_folder)
    (group,) = runs[1].trainer.optimizers["trunk_optimizer"].param_groups
    assert (group["lr"], type(group["lr"])) == (0.02, np.float64)
    assert (group["weight_decay"], type(group["weight_decay"])) == (np.float32(0.1), np.float32)


@pytest.mark.parametrize("kind", ["class", "lambda"])
def test_what_could_not_be_loaded_does_not_replace_the_file(tiny_run, tmp_path, kind):
    run = tiny_run(tmp_path, picture_interval=None, save_models=False)
    run.train(1)
    before = Path(run.model_folder, "checkpoint.pth").read_bytes()
    scheduler = run.trainer.lr_schedulers["trunk_scheduler_by_iteration"]
    scheduler.extra = _Mutable() if kind == "class" else lambda: None
    with pytest.raises(
        ValueError,
        match=r"lr_schedulers 'trunk_scheduler_by_iteration' must consist of .*got .*(_Mutable|lambda)",
    ):
        run.trainer.train(2, 2)
    assert Path(run.model_folder, "checkpoint.pth").read_bytes() == before
    assert not any(name.endswith(".partial") for name in os.listdir(run.model_folder))


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_file_cut_short_is_named(tiny_run, tmp_path, share):
    run = tiny_run(tmp_path)
    run.hooks.resume(run.trainer, run.model_folder)
    path = Path(run.model_folder, "checkpoint.pth")
    os.truncate(path, int(share * path.stat().st_size))
    other = tiny_run(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"must be a whole file, got '.*checkpoint.pth' of {path.stat().st_size} bytes.*put a copy",
    ):
        other.hooks.resume(other.trainer, other.model_folder)


def test_a_full_disk_is_reported_as_such(tiny_run, tmp_path, monkeypatch):
    run = tiny_run(tmp_path)

    def save(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, file) if "epoch" in state else None)
    monkeypatch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda file: [])
    with pytest.raises(OSError, match="No space left"):
        run.hooks.resume(run.trainer, run.model_folder)


def test_saving_leaves_the_sampler_and_the_loader_alone(tiny_run, tmp_path):
    run = tiny_run(tmp_path, picture_interval=None, checkpoint_interval=None)
    run.trainer.train(1, 1)
    iterator, sampler = run.trainer.dataloader_iter, dict(vars(run.sampler))
    checkpoint = Checkpoint(tmp_path / "checkpoint.pth", run.record_keeper)
    checkpoint.count_epoch(run.trainer)
    checkpoint.save(run.trainer, 1)
    assert run.trainer.dataloader_iter is iterator
    assert vars(run.sampler) == sampler
    checkpoint.restart_loader(run.trainer)
    assert run.trainer.dataloader_iter is not iterator


def test_a_class_declares_what_it_carries(tiny_run, tmp_path):
    class Counter(torch.nn.Identity):
        _carried_state = ("calls", "seen")

    runs = [tiny_run(tmp_path, picture_interval=None) for _ in range(2)]
    for run in runs:
        counter = Counter()
        counter.calls, counter.seen = 0, torch.zeros(1)
        run.trainer.models["embedder"] = torch.nn.Sequential(run.embedder, counter)
    saved = runs[0].trainer.models["embedder"][1]
    saved.calls, saved.seen = 7, torch.tensor([1.5])
    for run in runs:
        run.hooks.resume(run.trainer, run.model_folder)
    restored = runs[1].trainer.models["embedder"][1]
    assert (restored.calls, restored.seen.item()) == (7, 1.5)
