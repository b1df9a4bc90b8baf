import subprocess
import sys

import numpy as np
import pytest
from pytorch_metric_learning.utils import common_functions as c_f

from pml_xbml import benchmarker, cli


@pytest.mark.parametrize("missing", ["powerful_benchmarker", "easy_module_attribute_getter", "gdown"])
def test_a_missing_package_is_named_with_the_lines_that_install_it(missing, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.partition(".")[0] in ("powerful_benchmarker", missing):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert benchmarker.main(["--experiment_name", "name"]) == 1
    message = capsys.readouterr().err
    assert missing in message
    assert 'pip install "pml-xbml[benchmarker]"' in message
    assert "pip install --no-deps powerful-benchmarker==0.9.33" in message


def test_help_shows_both_programs_options_and_all_configs(capsys):
    assert cli.main(["benchmark", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--dataset_root", "--bayes_opt_iters", "--resume_training", "--reproduce_results"):
        assert option in text
    assert "--config_dataset [cars196, cub200, glyphs, in_shop, sop]" in text


def test_bayesian_optimization_without_ax_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        benchmarker.main(["--experiment_name", "name", "--bayes_opt_iters", "2"])
    assert "pip install 'ax-platform" in capsys.readouterr().err


def test_an_experiment_needs_a_name(capsys):
    with pytest.raises(SystemExit):
        benchmarker.main([])
    assert "--experiment_name" in capsys.readouterr().err


def test_pml_is_left_as_it_was(experiments):
    assert not hasattr(c_f, "Identity")
    assert c_f.NUMPY_RANDOM is np.random


def test_a_new_process_tells_a_users_error_in_one_line(tmp_path):
    arguments = ["--experiment_name", "name", "--splits_to_eval", "[tset]"]
    command = [sys.executable, "-m", "pml_xbml.cli", "benchmark", *arguments]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("pml-xbml benchmark: error: splits_to_eval must be among train, val, test")
    assert not failed.stdout
    assert not any(tmp_path.iterdir())
