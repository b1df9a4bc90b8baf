"""Ratios of two things, measured in turn in the same run.

pytest tests/benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

On the CPU what is timed is the process's own time, of one thread: a busy neighbour hardly shows in it.
"""

import statistics
import time

import pytest
import torch

RATIOS = pytest.StashKey()

DEVICES = [pytest.param("cpu", marks=pytest.mark.benchmark(timer=time.process_time))]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.benchmark(timer=time.perf_counter)))


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def ratio(benchmark, device, report):
    """Times a call against a reference, in turn; the median of the rounds' ratios."""
    timer = {"cpu": time.process_time, "cuda": time.perf_counter}[device]

    def finished(call):
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    def measure(what, call, against, reference, reach, rounds, faster=False):
        reference_times = []

        def time_reference():
            start = timer()
            finished(reference)
            reference_times.append(timer() - start)

        benchmark.pedantic(finished, args=(call,), setup=time_reference, rounds=rounds, warmup_rounds=2)
        times = benchmark.stats.stats.data
        pairs = zip(times, reference_times[-len(times) :], strict=True)
        value = statistics.median(theirs / ours if faster else ours / theirs for ours, theirs in pairs)
        report(what, against, reach, value)
        benchmark.extra_info["ratio"] = value
        return value

    return measure


@pytest.fixture
def report(request, device):
    """Puts a row into the table at the end of the run."""

    def add_row(what, against, reach, value):
        rows = request.config.stash.setdefault(RATIOS, [])
        rows.append((f"{what} ({device})", against, reach, f"{value:.3g}"))

    return add_row


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(RATIOS, [])
    if rows:
        terminalreporter.section("ratios")
        for row in [("what", "against", "reach", "measured"), ("---",) * 4, *rows]:
            terminalreporter.write_line(f"| {' | '.join(row)} |")
