"""Many runs, one after the other or several at once, under one progress bar."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import faiss
import torch
from tqdm import tqdm

from .result import Result, Split
from .run_config import RunConfig
from .train import MakeLoss, cross_batch_loss, train


class RunStopped(Exception):
    """Raised inside a run that is to end now, and to be resumed later."""


def run_all(
    runs: Sequence[RunConfig],
    folder: str | Path,
    jobs: int = 1,
    split: Split = "test",
    make_loss: MakeLoss = cross_batch_loss,
) -> list[Result]:
    """Train runs, each in a folder of its own below ``folder``, with one progress bar over all of them.

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
    num_batches = sum(run.iterations for run in runs)
    if jobs == 1:
        return _train_here(calls, num_batches)
    return _train_in_processes(calls, num_batches, min(jobs, len(calls)))


_Call = tuple[RunConfig, Path, Split, MakeLoss]


def _progress_bar(num_batches: int) -> Any:
    return tqdm(total=num_batches, unit="batch", smoothing=0.05, mininterval=0.5)


def _train_here(calls: Sequence[_Call], num_batches: int) -> list[Result]:
    results: list[Result] = []
    with _progress_bar(num_batches) as bar, _one_thread():
        for call in calls:
            bar.set_description(f"{len(results)} of {len(calls)} runs done")
            results.append(train(*call, on_iterations=bar.update))
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
        with _progress_bar(num_batches) as bar:
            while not all(future.done() for future in futures):
                _show_progress(bar, iterations, futures)
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


def _show_progress(bar: Any, iterations: Any, futures: Sequence["Future[Result]"]) -> None:
    done = [future for future in futures if future.done()]
    for future in done:
        future.result()  # raises what the run raised, which ends them all
    bar.set_description(f"{len(done)} of {len(futures)} runs done", refresh=False)
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
    """A pool's workers outlive a parent that is killed, and wait for its next word for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
