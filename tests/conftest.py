import random
import sys
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings
from tqdm import tqdm

pytest_plugins = ("tests.tiny_training",)

matplotlib.use("Agg")
# Tests kill processes that they forked. tqdm's own lock is shared with those, and one that dies while it
# draws a bar would keep it; and a thread that holds a lock while a process is forked leaves it locked there.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
# The machines are shared: one thread a process, and no deadline that a busy neighbor can break.
torch.set_num_threads(1)
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")


def pytest_ignore_collect(collection_path, config):
    """Benchmarks measure, they do not test: they run with --benchmark-only, and alone."""
    is_benchmark = collection_path.name == "benchmarks" and not config.getoption("benchmark_only")
    # ax-platform has no release for Python 3.10 that `--bayes_opt_iters` can be run with.
    needs_ax = collection_path.name == "test_bayes_opt_runner.py" and sys.version_info < (3, 11)
    return True if is_benchmark or needs_ax else None


#: Folders and files whose tests take seconds each, or have a set-up that does, or are hundreds of networks.
SLOW = (
    "benchmarker",
    "checkpoint",
    "cli",
    "comparison",
    "composition",
    "examples",
    "monitoring",
    "parallel",
    "studies",
    "test_fuzz.py",
    "test_ill_conditioned_fits.py",
    "test_training.py",
    "trunks/test_dropped_head.py",
    "trunks/test_networks_of_ones_own.py",
    "trunks/test_prototype_pooling_trunk.py",
    "trunks/test_sweep.py",
)


def pytest_collection_modifyitems(items):
    """`pytest -m "not slow"` leaves these out."""
    tests = Path(__file__).parent
    for item in items:
        if any(item.path.is_relative_to(tests / place) for place in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  pytorch-metric-learning draws from the global generator
    torch.manual_seed(0)
