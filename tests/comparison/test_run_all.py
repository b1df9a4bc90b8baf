import dataclasses
import multiprocessing
import os
import signal
import sys
import time

import faiss
import pytest
import torch
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from pml_xbml.comparison import run_all
from pml_xbml.comparison.run_all import _start_worker


def without_seconds(results):
    return [dataclasses.replace(result, seconds=0) for result in results]


def failing_loss(run, loss, trunk):
    raise ValueError(f"no loss for seed {run.seed}")


def dying_loss(run, loss, trunk):
    os._exit(1)


@pytest.fixture
def runs(tiny_run, tiny_xml_run):
    return [tiny_run, tiny_xml_run, dataclasses.replace(tiny_xml_run, seed=1)]


@pytest.mark.slow
def test_several_processes_give_what_one_does(runs, tmp_path):
    one = run_all(runs, tmp_path / "one")
    assert [result.run for result in one] == runs
    two = run_all(runs, tmp_path / "two", jobs=2)
    assert without_seconds(two) == without_seconds(one)
    # A second time nothing is trained.
    assert run_all(runs, tmp_path / "two", jobs=2) == two


def test_progress_counts_every_batch(runs, tmp_path, capsys):
    run_all(runs, tmp_path, jobs=2)
    assert "18/18" in capsys.readouterr().err
    run_all(runs, tmp_path)
    assert "18/18" in capsys.readouterr().err


def test_threads_are_as_before(runs, tmp_path):
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    try:
        run_all(runs[:1], tmp_path)
        assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (2, 2)
    finally:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_run_ends_them_all_with_its_error(runs, tmp_path, jobs):
    with pytest.raises(ValueError, match="no loss for seed 0"):
        run_all(runs, tmp_path, jobs=jobs, make_loss=failing_loss)


@pytest.mark.slow
def test_a_dead_process_is_told_of(runs, tmp_path):
    with pytest.raises(ChildProcessError, match=r"a training process died.* fewer jobs"):
        run_all(runs, tmp_path, jobs=2, make_loss=dying_loss)
    assert len(run_all(runs, tmp_path, jobs=2)) == 3


def test_test_classes_can_be_left_alone(runs, tmp_path):
    assert [result.test for result in run_all(runs[:2], tmp_path, split="validation")] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs(runs, tmp_path, jobs):
    with pytest.raises(ValueError, match=f"jobs must be at least 1, got {jobs}"):
        run_all(runs, tmp_path, jobs=jobs)


def test_two_runs_of_one_name(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="must differ in their names"):
        run_all([tiny_run, dataclasses.replace(tiny_run, embedding_size=4)], tmp_path)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tiny_run, tmp_path):
    long_runs = [dataclasses.replace(tiny_run, seed=seed, iterations=100_000) for seed in range(2)]
    parent = multiprocessing.get_context("fork").Process(target=run_all, args=(long_runs, tmp_path, 2))
    parent.start()
    wait_until(lambda: all((tmp_path / run.name / "training.log").exists() for run in long_runs))
    workers = children_of(parent.pid)
    assert len(workers) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    try:
        wait_until(lambda: not any(map(is_running, workers)))
    finally:
        for worker in filter(is_running, workers):
            os.kill(worker, signal.SIGKILL)


def test_a_worker_draws_its_bars_while_another_process_holds_the_lock_of_tqdm(monkeypatch):
    context = multiprocessing.get_context("fork")
    shared = TqdmDefaultWriteLock()
    monkeypatch.setattr(tqdm, "_lock", shared)
    iterations, stop = context.Queue(), context.Event()

    def draw():
        _start_worker(iterations, stop)
        list(tqdm(range(3)))

    worker = context.Process(target=draw)
    with shared:
        worker.start()
        worker.join(timeout=60)
    is_stuck = worker.is_alive()
    worker.kill()
    assert not is_stuck
    assert worker.exitcode == 0


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("jobs", [1, 2])
def test_bar_ends_with_all_runs_done_and_the_time_was_estimated(tiny_run, tmp_path, capfd, monkeypatch, jobs):
    monkeypatch.setattr(sys.modules["pml_xbml.comparison.run_all"], "BATCHES_OF_ESTIMATE", 3)
    runs = [dataclasses.replace(tiny_run, seed=seed) for seed in range(2)]
    run_all(runs, tmp_path, jobs)
    error = capfd.readouterr().err
    last = error.rstrip().split("\r")[-1]
    assert last.startswith("2 of 2 runs done: 100%")
    assert "12/12" in last
    assert error.count("minute(s) of training are left") == 1
    # Read again, nothing is trained or estimated.
    run_all(runs, tmp_path, jobs)
    error = capfd.readouterr().err
    assert "2 of 2 runs done: 100%" in error
    assert "minute(s)" not in error
