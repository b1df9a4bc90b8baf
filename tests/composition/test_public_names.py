"""Importing changes nothing in pytorch-metric-learning, registering adds two names and nothing else."""

import json
import subprocess
import sys

import pytest

SNAPSHOTS = """
import importlib, inspect, json, pkgutil
import pytorch_metric_learning

names = ["pytorch_metric_learning"]
for module in pkgutil.walk_packages(pytorch_metric_learning.__path__, "pytorch_metric_learning."):
    names.append(module.name)
modules = {name: importlib.import_module(name) for name in names}


def snapshot():
    # Names with the identity of their values, those of the classes' members too: nothing is patched.
    state = {}
    for module_name, module in modules.items():
        for name, value in vars(module).items():
            if name == "__builtins__":
                continue
            state[f"{module_name}.{name}"] = id(value)
            if inspect.isclass(value) and value.__module__.startswith("pytorch_metric_learning"):
                for member, member_value in vars(value).items():
                    state[f"{module_name}.{name}.{member}"] = id(member_value)
    return state


def differences(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


untouched = snapshot()
import pml_xbml, pml_xbml.comparison, pml_xbml.monitoring
imported = snapshot()
pml_xbml.register()
registered = snapshot()
print(json.dumps([len(untouched), differences(untouched, imported), differences(imported, registered)]))
"""


@pytest.fixture(scope="module")
def changes():
    completed = subprocess.run([sys.executable, "-c", SNAPSHOTS], capture_output=True, text=True, check=True)
    return json.loads(completed.stdout.splitlines()[-1])


@pytest.mark.slow
def test_importing_changes_nothing(changes):
    num_names, by_importing, _ = changes
    assert num_names > 1000
    assert by_importing == []


@pytest.mark.slow
def test_registering_adds_the_two_names_and_no_other(changes):
    _, _, by_registering = changes
    assert by_registering == [
        "pytorch_metric_learning.losses.CrossBatchPrototypeLoss",
        "pytorch_metric_learning.samplers.DisjointClassPairSampler",
    ]
