import contextlib
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from pytorch_metric_learning.utils import common_functions as c_f

RandomState: TypeAlias = dict[str, Any]

#: The kinds of generators whose state can be read and set.
Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def random_state() -> RandomState:
    """The state of every global generator that a training run draws from.

    Returns:
        A dictionary of plain Python values and CPU tensors with the states of ``random``, ``numpy.random``,
        pytorch-metric-learning's ``NUMPY_RANDOM``, and PyTorch on the CPU and on every CUDA device in use.
    """
    return {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002
        "pytorch_metric_learning": _state_of_pml(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: RandomState) -> None:
    """Puts every global generator back to where :func:`random_state` found it.

    Args:
        state: what :func:`random_state` returned.

    Raises:
        ValueError: if the state holds more CUDA devices than there are.
    """
    if len(state["cuda"]) > torch.cuda.device_count():
        raise ValueError(
            f"the number of CUDA devices must be at least {len(state['cuda'])}, as where the random state "
            f"was taken, got {torch.cuda.device_count()}; resume on a machine with as many"
        )
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if c_f.NUMPY_RANDOM is not np.random:
        set_generator_state(c_f.NUMPY_RANDOM, state["pytorch_metric_learning"])
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(cuda_state, device)


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Runs a block that may draw random numbers as if it had drawn none."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def generator_state(generator: Generator) -> Any:
    """The state of one generator: plain Python values, or a CPU tensor."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def set_generator_state(generator: Generator, state: Any) -> None:
    """Puts a generator back to where :func:`generator_state` found it."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _state_of_pml() -> Any:
    # NUMPY_RANDOM is the module numpy.random unless the user has put a generator there.
    return None if c_f.NUMPY_RANDOM is np.random else generator_state(c_f.NUMPY_RANDOM)


def _plain(state: Any) -> Any:
    """Arrays as lists, so that NumPy of another version reads them too."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state
