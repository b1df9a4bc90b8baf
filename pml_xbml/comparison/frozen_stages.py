"""The lower stages of a network, frozen: run once up to a module, and skipped ever after."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

AUTO = "auto"
#: The share of a network's multiplications that "auto" freezes.
AUTO_SHARE = 2 / 3
_CANDIDATES = 12
# A network is found as it is, or below the wrappers of PrototypePoolingTrunk.
_PREFIXES = ("", "trunk.", "trunk.network.", "network.")


class _Reached(Exception):
    """Ends a forward pass at the module that was waited for."""

    def __init__(self, activations: Any) -> None:
        self.activations = activations


class FrozenStages:
    """Cuts a network, in place, behind one of its modules.

    What runs before the module, and the module itself, is frozen: :meth:`compute` runs it. The network
    itself then takes its activations in place of images: the frozen modules hand on what they get, and keep
    their parameters and names, so that a state dict stays one of the whole network. The cut is tried on two
    sizes of input: a network with other operations than modules below the cut, or with a connection across
    it, is refused.

    Args:
        network: from images to features; a ``PrototypePoolingTrunk``, or what its ``unwrap`` gives.
        freeze: dotted name of the module in the network as its library builds it, or "auto".
        image_size: side of the images, for "auto" and for the trial.

    Attributes:
        name: the module that was cut at, also where "auto" chose it.

    Raises:
        ValueError: if there is no such module, or the network cannot be cut there.
    """

    def __init__(self, network: nn.Module, freeze: str, image_size: int = 64) -> None:
        self.network = network
        self._images = torch.randn(
            2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
        ).to(next(network.parameters()).device)
        if freeze == AUTO:
            self.name = self._cut_automatically()
        else:
            self.name = freeze
            reason = self._cut(freeze)
            if reason:
                raise ValueError(
                    f"freeze must name a module that the network can be cut behind, got {freeze!r}: "
                    f"{reason}; give a stage or block that the forward pass calls in sequence, such as "
                    f"{', '.join(self._examples())}"
                )

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
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _cut(self, name: str) -> str | None:
        """Cut there, or say why not and leave the network as it was."""
        module = self._find(name)
        if module is None:
            return f"{type(self.network).__name__} has no module of that name"
        frozen = _modules_run_up_to(self.network, module, self._images)
        if frozen is None:
            return "a forward pass does not run it, or it does not give one tensor"
        self._module, self._frozen = module, frozen
        was_training = self.network.training
        self.network.eval()
        try:
            for images in (self._images, self._images[..., : -(-self._images.shape[-1] * 3 // 4)]):
                with torch.no_grad():
                    expected = self.network(images)
                    activations = self.compute(images)
                    self.network.eval()
                    with self._skipping(True):
                        got = self.network(activations)
                torch.testing.assert_close(got, expected)
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            return f"what is above it does not go on from its output alone ({str(error).splitlines()[0]})"
        finally:
            self.network.train(was_training)
        for part in frozen:
            part.requires_grad_(False)
            part.forward = _hand_on
        self.network.register_forward_pre_hook(_in_single_precision)
        return None

    def _cut_automatically(self) -> str:
        costs = self._costs()
        by_distance = sorted(costs, key=lambda name: abs(costs[name] - AUTO_SHARE))
        for name in by_distance[:_CANDIDATES]:
            if 0.2 < costs[name] < 0.95 and self._cut(name) is None:
                return name
        raise ValueError(
            "freeze='auto' must find a module to cut the network behind, got none that it goes on from; name "
            f"one, such as one of {', '.join(by_distance[:4])}, or train the whole network"
        )

    def _costs(self) -> dict[str, float]:
        """The share of all multiplications that is done when a stage is, by its name."""
        done: dict[str, int] = {}
        counter = FlopCounterMode(display=False)
        prefix = self._prefix()

        def note(name: str, *_: Any) -> None:
            done.setdefault(name, counter.get_total_flops())

        handles = [
            module.register_forward_hook(functools.partial(note, name.removeprefix(prefix)))
            for name, module in self.network.named_modules()
            if name.startswith(prefix)
            and name not in ("", prefix.rstrip("."))
            and name.removeprefix(prefix).count(".") < 2
            and any(True for _ in module.children())
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

    def _examples(self) -> list[str]:
        costs = self._costs()
        return sorted(costs, key=lambda name: abs(costs[name] - AUTO_SHARE))[:4]

    def _skipping(self, skip: bool) -> "_Forwards":
        return _Forwards(self._frozen, skip)


class _Forwards:
    """Whether the frozen modules hand on their input, for the length of a block."""

    def __init__(self, modules: list[nn.Module], skip: bool) -> None:
        self.modules, self.skip = modules, skip

    def __enter__(self) -> None:
        self.before = [vars(module).pop("forward", None) for module in self.modules]
        if self.skip:
            for module in self.modules:
                module.forward = _hand_on

    def __exit__(self, *_: object) -> None:
        for module, before in zip(self.modules, self.before, strict=True):
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


def freeze_norms(network: nn.Module) -> None:
    """Keep batch and instance normalization layers in evaluation mode whenever the network runs."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

    def evaluate_norms(*_: object) -> None:
        for norm in norms:
            norm.training = False

    network.register_forward_pre_hook(evaluate_norms)


def _hand_on(activations: Tensor, *_: Any, **__: Any) -> Tensor:
    return activations


def _in_single_precision(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    (activations,) = inputs
    if activations.dim() == 4 and activations.device.type == "cpu":
        return (activations.to(torch.float32, memory_format=torch.channels_last),)
    return (activations.float(),)


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


def _modules_run_up_to(network: nn.Module, module: nn.Module, images: Tensor) -> list[nn.Module] | None:
    """The outermost modules that a forward pass has finished when it has finished this one."""
    finished: list[nn.Module] = []
    handles = [
        part.register_forward_hook(lambda part, *_: finished.append(part)) for part in network.modules()
    ]
    was_training = network.training
    try:
        if _run_up_to(network, module, images) is None:
            return None
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    finished.append(module)
    inner = {id(part) for outer in finished for part in _below(outer)}
    return [part for part in dict.fromkeys(finished) if id(part) not in inner]


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if part is not module)
