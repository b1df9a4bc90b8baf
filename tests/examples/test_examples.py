"""Each example is run as its first lines say, killed, run again, and compared with an unbroken run."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path

import psutil
import pytest
import torch

from pml_xbml import examples

FOLDER = Path(examples.__file__).parent
ITERATIONS, SAVE_EVERY = 60, 20
RESUMING = ("plain_pytorch", "with_lightning", "with_accelerate")
ALL = (*RESUMING, "distributed")
pytestmark = pytest.mark.slow


def command_of(example):
    """The command in the first lines of the example."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{example}.py").read_text(encoding="utf-8")))
    program, *arguments = shlex.split(re.search(r"^    (.+)$", docstring, re.MULTILINE)[1])
    if program == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
    assert program == "python"
    return [sys.executable, *arguments]


def start(example, folder, *arguments, stdout=subprocess.PIPE):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*command_of(example), "--iterations", str(ITERATIONS), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(example, folder, *arguments):
    process = start(example, folder, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def run_until_killed(example, folder):
    """Kills the run, with all of its processes, as soon as it has written a checkpoint."""
    process = start(example, folder, "--save-every", str(SAVE_EVERY), stdout=subprocess.DEVNULL)
    while not weights_files(example, folder):
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.02)
    for each in (process, *psutil.Process(process.pid).children(recursive=True)):
        each.kill()
    process.wait()


def weights_files(example, folder):
    pattern = {
        "plain_pytorch": "plain_pytorch.pt",
        "with_lightning": "lightning_example/last.ckpt",
        "with_accelerate": "accelerate_example/iteration_*/model.safetensors",
    }[example]
    return sorted(folder.glob(pattern))


def weights(example, folder):
    """The newest checkpoint's iteration and network."""
    file = weights_files(example, folder)[-1]
    if example == "with_accelerate":
        from safetensors.torch import load_file

        return int(file.parent.name.removeprefix("iteration_")), load_file(file)
    state = torch.load(file, weights_only=False)
    if example == "with_lightning":
        return state["global_step"], state["state_dict"]
    return state["iteration"], state["network"]


def accuracies(output):
    return {
        line: float(value) for line, value in re.findall(r"^(.+): validation MAP@R (\d\.\d+)$", output, re.M)
    }


@pytest.fixture(scope="module", params=RESUMING)
def unbroken(request, tmp_path_factory):
    example, folder = request.param, tmp_path_factory.mktemp(request.param)
    return example, run(example, folder, "--save-every", str(SAVE_EVERY)), *weights(example, folder)


def test_a_killed_run_ends_as_an_unbroken_one(unbroken, tmp_path):
    example, expected_output, iterations, expected = unbroken
    assert iterations == ITERATIONS
    run_until_killed(example, tmp_path)
    stopped_at, stopped = weights(example, tmp_path)
    assert 0 < stopped_at < ITERATIONS
    assert any(not torch.equal(stopped[name], expected[name]) for name in expected)
    output = run(example, tmp_path, "--save-every", str(SAVE_EVERY))
    resumed_iterations, resumed = weights(example, tmp_path)
    assert resumed_iterations == ITERATIONS
    assert resumed.keys() == expected.keys()
    for name, value in resumed.items():
        assert torch.equal(value, expected[name]), name
    last = f"iteration {ITERATIONS}"
    assert accuracies(output)[last] == accuracies(expected_output)[last]


def test_it_learns(unbroken):
    _, output, _, _ = unbroken
    untrained, trained = accuracies(output).values()
    assert trained > 1.2 * untrained


def test_the_processes_of_the_distributed_example_learn(tmp_path):
    output = run("distributed", tmp_path)
    assert accuracies(output).keys() == {"untrained", f"iteration {ITERATIONS}"}
    untrained, trained = accuracies(output).values()
    assert trained > 1.2 * untrained
    assert list(tmp_path.iterdir()) == []


def test_the_distributed_example_says_how_to_run_it(tmp_path):
    completed = subprocess.run(
        [sys.executable, "-m", "pml_xbml.examples.distributed"], cwd=tmp_path, capture_output=True, text=True
    )
    assert completed.returncode == 2
    assert "torchrun --nproc-per-node 2 -m pml_xbml.examples.distributed" in completed.stderr


@pytest.mark.parametrize("example", ALL)
def test_an_example_is_one_short_file(example):
    source = (FOLDER / f"{example}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 120
    assert "pml_xbml.comparison" not in source
    assert f"pml_xbml.examples.{example}" in " ".join(command_of(example))


@pytest.mark.parametrize("example", ALL)
def test_an_example_says_what_it_needs_besides_the_package(example):
    tree = ast.parse((FOLDER / f"{example}.py").read_text(encoding="utf-8"))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    distributions = {module.replace("_", "-") for module in modules - sys.stdlib_module_names}
    installed = {re.match(r"[\w-]+", line)[0] for line in requires("pml-xbml") if "extra ==" not in line}
    said = re.search(r"``pip install (.+)``", ast.get_docstring(tree))
    assert distributions - installed - {"pml-xbml"} == set(said[1].split() if said else [])


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"__init__", *ALL}
