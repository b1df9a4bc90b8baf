"""The lower stages of a network, frozen: run once up to a module, and skipped ever after."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..trunks import PrototypePooling

AUTO = "auto"
#: The share of a network's multiplications that "auto" freezes.
AUTO_SHARE = 2 / 3
_CANDIDATES = 12
_SUGGESTED = 4
# Stages and blocks; where none of them will do, what these are made of.
_DEPTHS = (2, 3)
# Images of the first trial.
_BATCH = 2
# A network is found as it is, or below the wrappers of PrototypePoolingTrunk.
_PREFIXES = ("", "trunk.", "trunk.network.", "network.")


class _Reached(Exception):
    """Ends a forward pass at the module that was waited for."""

    def __init__(self, activations: Any) -> None:
        self.activations = activations


class FrozenStages:
    """Cuts a network, in place, behind one of its modules.

    What runs before the module, and the module itself, is frozen: :meth:`compute` runs it. The network
    itself then takes its activations in place of images: it runs on an empty image, the frozen modules give
    zeros in no time, the module gives the activations. All keep their parameters and names, so that a state
    dict stays one of the whole network. The cut is tried on two batches: a network with a connection across
    it is refused.

    Args:
        network: from images to features; a ``PrototypePoolingTrunk``, or what its ``unwrap`` gives.
        freeze: dotted name of the module in the network as its library builds it, or "auto".
        image_size: side of the images, for "auto" and for the trial.
        cut: False leaves the network whole: it still takes images, and what would be below the cut has no
            gradient and stays in evaluation mode, also in training.

    Attributes:
        name: the module that was cut at, also where "auto" chose it.

    Raises:
        ValueError: if there is no such module, or the network cannot be cut there.
    """

    def __init__(self, network: nn.Module, freeze: str, image_size: int = 64, cut: bool = True) -> None:
        self.network = network
        self._device = next(network.parameters()).device
        generator = torch.Generator().manual_seed(0)
        self._batches = [
            torch.randn(count, 3, image_size, image_size, generator=generator).to(self._device)
            for count in (_BATCH, _BATCH + 1)
        ]
        self._images = self._batches[0]
        if freeze == AUTO:
            self.name = self._choose()
        else:
            self.name = freeze
            reason = self._try(freeze)
            if reason:
                raise ValueError(
                    f"freeze must name a module that the network can be cut behind, got {freeze!r}: "
                    f"{reason}; {self._suggestion()}"
                )
        self._freeze()
        if cut:
            self._cut()
        else:
            names = [name for name, module in network.named_modules() if module in self._skipped.forwards]
            network.register_forward_pre_hook(functools.partial(_evaluate_modules, names))

    def compute(self, images: Tensor) -> Tensor:
        """The activations (B, …) of images (B, 3, H, W), in evaluation mode and without gradients."""
        was_training = self.network.training
        with self._skipping(False):
            activations = _run_up_to(self.network, self._module, images)
        self.network.train(was_training)
        assert activations is not None
        return activations

    def state_hash(self) -> str:
        """A hash of all that the activations depend on in the network: its text and the frozen weights."""
        digest = hashlib.sha256(f"{self.name}\n{[repr(module) for module in self._frozen]}".encode())
        for module in self._frozen:
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(_bytes(tensor))
        for parameter in self._unreached:
            digest.update(_bytes(parameter))
        return digest.hexdigest()

    def _try(self, name: str) -> str | None:
        """Says why the network cannot be cut there, or remembers how."""
        module = self._find(name)
        if module is None:
            return f"{type(self.network).__name__} has no module of that name"
        outputs = _outputs_up_to(self.network, module, self._images)
        if outputs is None:
            return "a forward pass does not run it, or it does not give one tensor"
        self._module = module
        self._frozen, self._skipped = list(outputs), _Skipped(outputs, module)
        was_training = self.network.training
        self.network.eval()
        try:
            for images in self._batches:
                with torch.no_grad():
                    expected = self.network(images)
                    activations = self.compute(images)
                self.network.eval()
                with self._skipping(True):
                    got = self.network(self._skipped.take(activations, images.shape))
                torch.testing.assert_close(got.detach(), expected)
            self._unreached = self._parameters_without_gradient(got)
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            return f"what is above it does not go on from its output alone ({str(error).splitlines()[0]})"
        finally:
            self._skipped.activations = None
            self.network.train(was_training)
        return None

    def _freeze(self) -> None:
        for part in self._frozen:
            part.requires_grad_(False)
        for parameter in self._unreached:
            parameter.requires_grad_(False)

    def _cut(self) -> None:
        for part, forward in self._skipped.forwards.items():
            part.forward = forward
        shape, skipped = self._images.shape, self._skipped
        self.network.register_forward_pre_hook(
            lambda _, inputs: (skipped.take(_in_single_precision(inputs[0]), shape),)
        )

    def _parameters_without_gradient(self, output: Tensor) -> list[nn.Parameter]:
        """Parameters below the cut that no frozen module has, such as the positions of a transformer."""
        frozen = {id(part) for part in self._frozen}
        owners = [
            module
            for module in self.network.modules()
            if any(id(part) in frozen for part in _below(module)) and id(module) not in frozen
        ]
        candidates = [
            parameter
            for owner in owners
            for parameter in owner.parameters(recurse=False)
            if parameter.requires_grad
        ]
        if not candidates or not output.requires_grad:
            return candidates
        gradients = torch.autograd.grad(output.sum(), candidates, allow_unused=True)
        return [
            parameter for parameter, gradient in zip(candidates, gradients, strict=True) if gradient is None
        ]

    def _choose(self) -> str:
        for name in self._cuttable():
            return name
        raise ValueError(
            "freeze='auto' must find a module to cut the network behind, got none that it goes on from; "
            "train the whole network"
        )

    def _cuttable(self) -> Iterator[str]:
        """Modules that the network can be cut behind, those nearest to the share of the cost first."""
        tried: set[str] = set()
        for depth in _DEPTHS:
            costs = self._costs(depth)
            by_distance = sorted(costs, key=lambda name: abs(costs[name] - AUTO_SHARE))
            for name in by_distance[:_CANDIDATES]:
                if 0.2 < costs[name] < 0.95 and name not in tried and self._try(name) is None:
                    yield name
                tried.add(name)

    def _suggestion(self) -> str:
        """What would do, tried."""
        names = list(itertools.islice(self._cuttable(), _SUGGESTED))
        if not names:
            return "train the whole network"
        return f"give a stage or block that the forward pass calls in sequence, such as {', '.join(names)}"

    def _costs(self, depth: int) -> dict[str, float]:
        """The share of all multiplications that is done when a stage is, by its name of so many parts."""
        done: dict[str, int] = {}
        counter = FlopCounterMode(display=False)
        prefix = self._prefix()
        network = self.network.get_submodule(prefix.rstrip("."))
        # One of layers alone, without stages.
        is_flat = all(
            isinstance(module, PrototypePooling) or not any(True for _ in module.children())
            for module in network.children()
        )

        def note(name: str, *_: Any) -> None:
            done.setdefault(name, counter.get_total_flops())

        handles = [
            module.register_forward_hook(functools.partial(note, name.removeprefix(prefix)))
            for name, module in self.network.named_modules()
            if name.startswith(prefix)
            and name not in ("", prefix.rstrip("."))
            and name.removeprefix(prefix).count(".") < depth
            and (is_flat or any(True for _ in module.children()))
        ]
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad(), counter:
                self.network(self._images)
        finally:
            self.network.train(was_training)
            for handle in handles:
                handle.remove()
        total = counter.get_total_flops()
        return {name: flops / total for name, flops in done.items()}

    def _prefix(self) -> str:
        names = {name for name, _ in self.network.named_modules()}
        for prefix in ("trunk.network.", "trunk.", "network."):
            if prefix.rstrip(".") in names and type(self.network).__name__ in (
                "PrototypePoolingTrunk",
                "PooledFeatures",
            ):
                return prefix
        return ""

    def _find(self, name: str) -> nn.Module | None:
        modules = dict(self.network.named_modules())
        found = (modules.get(f"{prefix}{name}") for prefix in (self._prefix(), *_PREFIXES) if name)
        return next((module for module in found if module is not None), None)

    def _skipping(self, skip: bool) -> "_Forwards":
        return _Forwards(self._skipped.forwards, skip)


class _Skipped:
    """What the frozen modules give in a network that is cut: zeros of their sizes, and the activations.

    Attributes:
        activations: of the last one of the modules, for the forward pass that is running.
        forwards: of the modules.
    """

    def __init__(self, outputs: dict[nn.Module, Any], last: nn.Module) -> None:
        self.activations: Tensor | None = None
        self._batch_size = 0
        self.forwards: dict[nn.Module, Callable[..., Any]] = {
            module: functools.partial(self._zeros, tree_map_only(Tensor, _Layout, output))
            for module, output in outputs.items()
        }
        self.forwards[last] = self._hand_over

    def take(self, activations: Tensor, shape: torch.Size) -> Tensor:
        """Keeps activations for the module, and gives the network an empty image of the batch's shape."""
        self.activations, self._batch_size = activations, len(activations)
        return activations.new_zeros(()).expand(len(activations), *shape[1:])

    def _hand_over(self, *_: Any, **__: Any) -> Tensor:
        activations, self.activations = self.activations, None
        if activations is None:
            raise ValueError("the module runs twice")
        return activations

    def _zeros(self, outputs: Any, *_: Any, **__: Any) -> Any:
        return tree_map_only(_Layout, self._zero, outputs)

    def _zero(self, layout: "_Layout") -> Tensor:
        size = layout.size
        if size and size[0] % _BATCH == 0:
            size = (size[0] // _BATCH * self._batch_size, *size[1:])
        return torch.zeros((), dtype=layout.dtype, device=layout.device).expand(size)


class _Layout:
    """Size and kind of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.size, self.dtype, self.device = tuple(tensor.shape), tensor.dtype, tensor.device


class _Forwards:
    """Whether the frozen modules are skipped, for the length of a block."""

    def __init__(self, forwards: dict[nn.Module, Callable[..., Any]], skip: bool) -> None:
        self.forwards, self.skip = forwards, skip

    def __enter__(self) -> None:
        self.before = [vars(module).pop("forward", None) for module in self.forwards]
        if self.skip:
            for module, forward in self.forwards.items():
                module.forward = forward

    def __exit__(self, *_: object) -> None:
        for module, before in zip(self.forwards, self.before, strict=True):
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


def freeze_norms(network: nn.Module) -> None:
    """Keeps batch and instance normalization layers in evaluation mode whenever the network runs."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

    def evaluate_norms(*_: object) -> None:
        for norm in norms:
            norm.training = False

    network.register_forward_pre_hook(evaluate_norms)


def _evaluate_modules(names: list[str], network: nn.Module, _: Any) -> None:
    """By name, so that a copy of the network evaluates its own modules."""
    for name in names:
        network.get_submodule(name).eval()


def _in_single_precision(activations: Tensor) -> Tensor:
    if activations.dim() == 4 and activations.device.type == "cpu":
        return activations.to(torch.float32, memory_format=torch.channels_last)
    return activations.float()


def _run_up_to(network: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output)

    hooks = network._forward_pre_hooks.copy()
    network._forward_pre_hooks.clear()
    handle = module.register_forward_hook(stop)
    network.eval()
    try:
        with torch.no_grad():
            network(images.to(next(network.parameters()).device))
    except _Reached as reached:
        return reached.activations if isinstance(reached.activations, Tensor) else None
    finally:
        handle.remove()
        network._forward_pre_hooks.update(hooks)
    return None


def _outputs_up_to(network: nn.Module, module: nn.Module, images: Tensor) -> dict[nn.Module, Any] | None:
    """The outermost modules that a forward pass has finished when it has finished this one; their outputs."""
    outputs: dict[nn.Module, Any] = {}
    handles = [
        part.register_forward_hook(lambda part, _, output: outputs.update({part: output}))
        for part in network.modules()
    ]
    was_training = network.training
    try:
        activations = _run_up_to(network, module, images)
        if activations is None:
            return None
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    outputs[module] = activations
    inner = {id(part) for outer in outputs for part in _below(outer)}
    return {part: output for part, output in outputs.items() if id(part) not in inner}


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if part is not module)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
