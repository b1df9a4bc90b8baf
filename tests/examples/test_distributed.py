import os
import re
import subprocess
import sys

import pytest

from pml_xbml.examples import distributed


def test_two_processes_train_and_the_first_tells_the_accuracy(tmp_path):
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "pml_xbml.examples.distributed", "--iterations", "3", "--batch-size", "16"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    (precision,) = re.findall(r"^precision_at_1: (\d\.\d+)$", completed.stdout, re.MULTILINE)
    # 486 classes of test characters: chance finds one in 400 or so.
    assert 0.05 < float(precision) <= 1
    assert list(tmp_path.iterdir()) == []


def test_without_torchrun_it_says_how_to_run_it(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit):
        distributed.main([])
    error = capsys.readouterr().err
    assert "torchrun --nproc-per-node N -m pml_xbml.examples.distributed" in error
    assert "torchrun starts the processes" in error


def test_help_tells_the_defaults(capsys):
    with pytest.raises(SystemExit):
        distributed.main(["--help"])
    assert "steps to take (default: 200)" in capsys.readouterr().out
