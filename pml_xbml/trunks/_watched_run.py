"""Runs a network and notes which modules ran, on what, and where it averaged or took maxima."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_AVERAGES = ("mean", "avg_pool2d", "_adaptive_avg_pool2d")
_MAXIMA = ("amax", "max", "max_pool2d_with_indices", "adaptive_max_pool2d")


@dataclass
class Call:
    """One run of a module.

    Attributes:
        name: dotted name of the module.
        start: when it began, in events of the network's run.
        end: when it ended.
        input_shape: of its first argument; () if that is no tensor.
        output_shape: likewise.
        averages: whether it gave the mean over all positions of feature maps, or over all tokens.
        features: its first argument, if it gave one value for each channel of that; else None.
    """

    name: str
    start: int
    end: int = -1
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    averages: bool = False
    features: Tensor | None = None

    def note(self, argument: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.output_shape = tuple(output.shape)
        if not isinstance(argument, Tensor):
            return
        self.input_shape = tuple(argument.shape)
        if argument.dim() not in (3, 4) or not isinstance(output, Tensor):
            return
        average = argument.mean((2, 3) if argument.dim() == 4 else 1)
        if output.dim() > 1 and output.shape[:2] == average.shape and output.numel() == average.numel():
            self.features = argument
            is_larger = argument.numel() > output.numel()
            self.averages = is_larger and are_close(output.flatten(1), average)


@dataclass(frozen=True)
class Reduction:
    """One operation that reduced all positions of maps, or all tokens, to one."""

    time: int
    is_average: bool
    is_complete: bool
    """False for a pool with a window of a fixed size that left out some positions."""
    output: Tensor


@dataclass
class Run:
    """A run of a network.

    Attributes:
        output: what it returned.
        calls: the runs of its modules, in the order in which they began.
        reductions: in the order in which they ran.
    """

    output: Any = None
    calls: list[Call] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)


def watched_run(network: torch.nn.Module, function: Callable[[], Any]) -> Run:
    """Calls a function that runs the network, or parts of it, and watches.

    Args:
        network: whose modules to watch.
        function: without arguments.

    Returns:
        The run.
    """
    run = Run()
    running: list[Call] = []
    clock = itertools.count()
    mode = _NotesReductions(run, clock)

    def enter(name: str) -> None:
        running.append(Call(name, start=next(clock)))
        run.calls.append(running[-1])

    def leave(inputs: tuple[Any, ...], output: Any) -> None:
        call = running.pop()
        call.end = next(clock)
        # What it takes to look is no operation of the network.
        mode.is_paused = True
        call.note(inputs[0] if inputs else None, output)
        mode.is_paused = False

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda _module, inputs, output: leave(inputs, output)))
    try:
        with mode:
            run.output = function()
    finally:
        for handle in handles:
            handle.remove()
    return run


def are_close(output: Tensor, average: Tensor) -> bool:
    """Whether two averages are the same but for rounding; sums in another order differ."""
    if output.shape != average.shape:
        return False
    tolerance = 2e-2 if output.dtype in (torch.float16, torch.bfloat16) else 1e-3
    output, average = output.float(), average.float()
    return torch.allclose(output, average, rtol=tolerance, atol=tolerance * float(average.abs().amax()))


class _NotesReductions(TorchDispatchMode):
    """Sees the operations themselves, so that averages by function calls show like those by modules."""

    def __init__(self, run: Run, clock: itertools.count[int]) -> None:
        super().__init__()
        self._run, self._clock = run, clock
        self.is_paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if not self.is_paused and operation in (*_AVERAGES, *_MAXIMA):
            output = result[0] if isinstance(result, tuple) else result
            is_complete = _reduces_positions(operation, args, output)
            if is_complete is not None:
                self._run.reductions.append(
                    Reduction(next(self._clock), operation in _AVERAGES, is_complete, output.flatten(1))
                )
        return result


def _reduces_positions(operation: str, args: tuple[Any, ...], output: Any) -> bool | None:
    """Whether all positions were reduced to one: True; to one, but some were left out: False; no: None."""
    features = args[0]
    if not isinstance(output, Tensor) or features.dim() not in (3, 4) or output.numel() >= features.numel():
        return None
    if operation.endswith(("pool2d", "pool2d_with_indices")):
        if features.dim() != 4 or output.shape[2:].numel() != 1:
            return None
        window = None if operation.startswith(("adaptive", "_adaptive")) else args[1]
        sizes = features.shape[2:] if window is None else [*window, *window][-2:]
        return tuple(sizes) == tuple(features.shape[2:])
    dims = args[1] if len(args) > 1 else None
    if dims is None:
        return None
    reduced = {dim % features.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    if features.dim() == 4:
        return True if reduced in ({2, 3}, {1, 2}) else None
    # A norm over the channels of tokens reduces the last dimension too, and keeps it.
    keeps_dim = len(args) > 2 and bool(args[2])
    return True if reduced == {1} or (reduced == {2} and not keeps_dim) else None
