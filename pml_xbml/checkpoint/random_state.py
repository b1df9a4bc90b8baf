import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.utils import common_functions as c_f

RandomState = dict[str, Any]


def random_state() -> RandomState:
    """The state of every generator that a training run draws from.

    Returns:
        A dictionary of plain Python values and CPU tensors with the states of ``random``, ``numpy.random``,
        pytorch-metric-learning's ``NUMPY_RANDOM``, and PyTorch on the CPU and on every CUDA device in use.
    """
    return {
        "python": random.getstate(),
        "numpy": _numpy_state(np.random),
        "pytorch_metric_learning": _numpy_state(c_f.NUMPY_RANDOM),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: RandomState) -> None:
    """Puts every generator back to where :func:`random_state` found it.

    Args:
        state: What :func:`random_state` returned.

    Raises:
        ValueError: if the state holds more CUDA devices than there are.
    """
    if len(state["cuda"]) > torch.cuda.device_count():
        raise ValueError(
            f"The random state was taken with {len(state['cuda'])} CUDA devices and there are "
            f"{torch.cuda.device_count()}; resume on a machine with as many."
        )
    random.setstate(state["python"])
    _set_numpy_state(np.random, state["numpy"])
    _set_numpy_state(c_f.NUMPY_RANDOM, state["pytorch_metric_learning"])
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


def _numpy_state(generator: Any) -> dict[str, Any]:
    # NUMPY_RANDOM is the module numpy.random, a RandomState or, as PML only shuffles and chooses, a
    # Generator.
    if isinstance(generator, np.random.Generator):
        return _without_arrays(generator.bit_generator.state)
    return _without_arrays(generator.get_state(legacy=False))


def _set_numpy_state(generator: Any, state: dict[str, Any]) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _without_arrays(state: Any) -> Any:
    """Arrays as lists: torch.load with weights_only=True takes no NumPy array."""
    if isinstance(state, dict):
        return {name: _without_arrays(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state
