"""Many runs, one after the other or several at once, under one progress bar."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import faiss
import torch
from tqdm import tqdm

from .feature_cache import CACHE_FOLDER, remove_other_caches
from .models import MakeLoss, build_models, cache_of, cross_batch_loss, splits_of, use_frozen_stages
from .result import Result, Split
from .run_config import RunConfig
from .train import RESULT_FILE, train


class RunStopped(Exception):
    """Raised inside a run that is to end now, and to be resumed later."""


def run_all(
    runs: Sequence[RunConfig],
    folder: str | Path,
    jobs: int = 1,
    split: Split = "test",
    make_loss: MakeLoss = cross_batch_loss,
) -> list[Result]:
    """Trains runs, each in a folder of its own below ``folder``, with one progress bar over all of them.

    Runs that are finished are not repeated and those that were stopped go on where they were, so that a
    comparison that was killed can be started again. Each run has one CPU thread: how many run at once does
    not change what they give.

    Args:
        runs: what to train.
        folder: the folder of the runs' folders, which bear the runs' names.
        jobs: how many to train at once; more than one take a process each, so the script that calls this has
            to guard its main part with ``if __name__ == "__main__"``.
        split, make_loss: see :func:`~pml_xbml.comparison.train.train`. Processes import
            ``make_loss`` by its name.

    Returns:
        The results, in the order of ``runs``.

    Raises:
        ValueError: if jobs is less than one, or two runs have one name; and what a run raises.
        ChildProcessError: if a training process died.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    folders = [Path(folder) / run.name for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"runs must differ in their names, got {[run.name for run in runs]}")
    calls = [(run, run_folder, split, make_loss) for run, run_folder in zip(runs, folders, strict=True)]
    _prepare_frozen_stages(runs, Path(folder), split)
    num_batches = sum(run.iterations for run in runs)
    if jobs == 1:
        return _train_here(calls, num_batches)
    return _train_in_processes(calls, num_batches, min(jobs, len(calls)))


def _prepare_frozen_stages(runs: Sequence[RunConfig], folder: Path, split: Split) -> None:
    """Computes what the runs share before the first of them, and before other processes start."""
    frozen = {
        (run.freeze, run.trunk, run.pretrained or run.seed, run.copies, run.image_size, run.dataset): run
        for run in runs
        if run.freeze is not None and not _is_measured(folder / run.name / RESULT_FILE, split)
    }
    cache_folder = folder / CACHE_FOLDER
    if frozen:
        remove_other_caches(cache_folder, {cache_of(run, cache_folder) for run in frozen.values()})
    for run in frozen.values():
        trunk, _ = build_models(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        use_frozen_stages(run, trunk, splits_of(run), cache_folder)


def _is_measured(path: Path, split: Split) -> bool:
    return path.exists() and (split == "validation" or Result.load(path).test is not None)


_Call = tuple[RunConfig, Path, Split, MakeLoss]


#: The time that all runs take is estimated from this many batches.
BATCHES_OF_ESTIMATE = 50


class _ProgressBar:
    """One bar over all runs, which tells after the first batches how long all of them will take."""

    def __init__(self, num_runs: int, num_batches: int) -> None:
        self.num_runs = num_runs
        self.bar = tqdm(total=num_batches, unit="batch", smoothing=0.05, mininterval=0.5)
        self.num_timed = 0
        self.started: float | None = None

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show_runs(self, num_done: int) -> None:
        """Tells how many runs are done."""
        done = num_done == self.num_runs
        if done:
            self.bar.total = self.bar.n  # runs that stopped early leave batches over
        self.bar.set_description(f"{num_done} of {self.num_runs} runs done", refresh=done)

    def update(self, count: int) -> None:
        """Counts batches. What a run trained earlier comes in one number, which is not timed."""
        self.bar.update(count)
        if count != 1 or self.num_timed > BATCHES_OF_ESTIMATE:
            return
        if self.started is None:
            self.started = time.monotonic()
            return
        self.num_timed += 1
        if self.num_timed == BATCHES_OF_ESTIMATE:
            self.num_timed += 1
            seconds = (time.monotonic() - self.started) / BATCHES_OF_ESTIMATE * (self.bar.total - self.bar.n)
            self.bar.write(
                f"About {max(1, round(seconds / 60))} minute(s) of training are left, and the validations.",
                file=self.bar.fp,  # of the start: inside a run sys.stderr is its log
            )


def _train_here(calls: Sequence[_Call], num_batches: int) -> list[Result]:
    results: list[Result] = []
    with _ProgressBar(len(calls), num_batches) as bar, _one_thread():
        for call in calls:
            bar.show_runs(len(results))
            results.append(train(*call, on_iterations=bar.update))
        bar.show_runs(len(results))
    return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    torch_threads, faiss_threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        faiss.omp_set_num_threads(faiss_threads)


def _train_in_processes(calls: Sequence[_Call], num_batches: int, jobs: int) -> list[Result]:
    context = _process_context()
    iterations, stop = context.Queue(), context.Event()
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (iterations, stop))
    futures = [pool.submit(_train_in_worker, *call) for call in calls]
    try:
        with _ProgressBar(len(calls), num_batches) as bar:
            while not all(future.done() for future in futures):
                _show_progress(bar, iterations, futures)
            with contextlib.suppress(queue.Empty):
                while True:
                    bar.update(iterations.get(timeout=0.1))
            bar.show_runs(len(futures))
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a training process died, as when memory runs out; give the same command again with fewer jobs: "
            "it goes on where it was"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _process_context() -> Any:
    # Forked processes share the memory of all that is imported, half a gigabyte each, and start at once. CUDA
    # cannot be used in them, and on other systems than Linux their libraries break.
    can_fork = sys.platform == "linux" and not torch.cuda.is_available()
    return multiprocessing.get_context("fork" if can_fork else "spawn")


def _show_progress(bar: _ProgressBar, iterations: Any, futures: Sequence["Future[Result]"]) -> None:
    done = [future for future in futures if future.done()]
    for future in done:
        future.result()  # raises what the run raised, which ends them all
    bar.show_runs(len(done))
    with contextlib.suppress(queue.Empty):
        bar.update(iterations.get(timeout=0.5))


_worker_iterations: Any
_worker_stop: Event


def _start_worker(iterations: Any, stop: Event) -> None:
    global _worker_iterations, _worker_stop
    _worker_iterations, _worker_stop = iterations, stop
    iterations.cancel_join_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Forked processes share tqdm's lock; one that is killed while it draws a bar of PML's would keep it.
    tqdm.set_lock(threading.RLock())
    # Ctrl-C reaches every process of the terminal; the one that started the others tells them when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _train_in_worker(run: RunConfig, folder: Path, split: Split, make_loss: MakeLoss) -> Result:
    return train(run, folder, split, make_loss, on_iterations=_report_iterations)


def _report_iterations(count: int) -> None:
    if _worker_stop.is_set():
        raise RunStopped
    _worker_iterations.put(count)


def _end_with_parent() -> None:
    """A pool's workers outlive a parent that is killed, and wait for tasks that never come."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
