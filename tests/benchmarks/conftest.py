"""Ratios of two things, measured in turn in the same run.

pytest tests/benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

On the CPU what is timed is the process's own time, of one thread: a busy neighbor hardly shows in it.
"""

import statistics
import time

import pytest
import torch

RATIOS = pytest.StashKey()

# How far a ratio may miss its reach before the run fails: on a shared machine, runs of one and the same code
# differ by a few hundredths, and a slower loss by more.
TOLERANCE = 0.1

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

    def measure(what, call, against, reference, rounds, at_most=None, at_least=None, warmup_rounds=2):
        """The time of call by that of reference; the other way round with at_least, times faster."""
        reference_times = []

        def time_reference():
            start = timer()
            finished(reference)
            reference_times.append(timer() - start)

        benchmark.pedantic(
            finished, args=(call,), setup=time_reference, rounds=rounds, warmup_rounds=warmup_rounds
        )
        times = benchmark.stats.stats.data
        pairs = zip(times, reference_times[-len(times) :], strict=True)
        is_speed = at_least is not None
        value = statistics.median(theirs / ours if is_speed else ours / theirs for ours, theirs in pairs)
        benchmark.extra_info["ratio"] = value
        report(what, against, value, at_most, at_least)

    return measure


@pytest.fixture
def report(request, device):
    """Puts a row into the table at the end of the run, and fails if the ratio misses its reach."""

    def add_row(what, against, value, at_most=None, at_least=None):
        reach = f"≤ {at_most:g}" if at_most is not None else f"≥ {at_least:g}"
        rows = request.config.stash.setdefault(RATIOS, [])
        rows.append((f"{what} ({device})", against, reach, f"{value:.3g}"))
        message = f"{what}: {value:.3g} against {against}, which misses {reach} by more than {TOLERANCE:.0%}"
        assert at_most is None or value <= at_most * (1 + TOLERANCE), message
        assert at_least is None or value >= at_least / (1 + TOLERANCE), message

    return add_row


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(RATIOS, [])
    if rows:
        terminalreporter.section("ratios")
        for row in [("what", "against", "reach", "measured"), ("---",) * 4, *rows]:
            terminalreporter.write_line(f"| {' | '.join(row)} |")
