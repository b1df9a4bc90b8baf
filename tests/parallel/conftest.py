import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory):
    """Runs processes under torchrun as a user does, with a limit on the time that they may hang."""

    def run(num_processes, *command):
        return subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(num_processes), *map(str, command)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=tmp_path_factory.mktemp("torchrun"),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def results(torchrun, tmp_path_factory):
    """What the worker's processes saved, by the number of processes and by rank, and what one did alone."""
    folder = tmp_path_factory.mktemp("worker")
    completed = torchrun(4, Path(__file__).with_name("worker.py"), folder)
    assert completed.returncode == 0, completed.stderr
    saved = {
        size: [torch.load(folder / f"process_{rank}_of_{size}.pt") for rank in range(size)] for size in (2, 4)
    }
    return saved | {"alone": torch.load(folder / "alone.pt")}
