import io
import random

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils import common_functions as c_f

from pml_xbml.checkpoint.random_state import preserved_random_state, random_state, set_random_state

GENERATORS = {
    "numpy.random": lambda: np.random,
    "RandomState": lambda: np.random.RandomState(1),
    "PCG64": lambda: np.random.default_rng(1),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(1)),
    "Philox": lambda: np.random.Generator(np.random.Philox(1)),
    "SFC64": lambda: np.random.Generator(np.random.SFC64(1)),
}


def draw():
    return [
        random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(),  # noqa: NPY002
        c_f.NUMPY_RANDOM.choice(1000), c_f.NUMPY_RANDOM.standard_normal(), torch.rand(1).item(),
    ]  # fmt: skip


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS.keys())
def test_what_was_drawn_is_drawn_again_from_a_file(monkeypatch, make):
    monkeypatch.setattr(c_f, "NUMPY_RANDOM", make())
    draw()
    file = io.BytesIO()
    torch.save(random_state(), file)
    first = draw()
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draw() == first


def test_a_preserved_state_is_as_if_nothing_was_drawn():
    state = random_state()
    expected = draw()
    set_random_state(state)
    with preserved_random_state():
        draw()
    assert draw() == expected


def test_a_state_of_more_devices_than_there_are():
    state = random_state()
    state["cuda"] = [torch.get_rng_state()] * (torch.cuda.device_count() + 1)
    with pytest.raises(ValueError, match="resume on a machine with as many"):
        set_random_state(state)
