import copy
import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from powerful_benchmarker import factories

from ...trunks import PrototypePoolingTrunk


class OptimizerFactory(factories.OptimizerFactory):
    """Builds optimizers, learning rate schedulers and gradient clippers.

    Beside the optimizer's class, YAML may say ``prototypes_lr``, a learning rate for the prototypes of a
    ``PrototypePoolingTrunk``: at the rates that suit pretrained weights they would stay where they started.
    Models and losses without parameters are left out, so that one file serves losses with and without
    proxies.
    """

    def _create_general(
        self, optimizer_type: dict[str, Any], k: str, param_sources: list[dict[str, torch.nn.Module]]
    ) -> dict[str, Any]:
        specs = copy.deepcopy(optimizer_type)
        max_norm = specs.pop("clip_grad_norm", None)
        prototypes_lr = specs.pop("prototypes_lr", None)
        name = k.removesuffix("_optimizer")
        module = next((source[name] for source in param_sources if name in source), None)
        if module is None:
            known = sorted(f"{name}_optimizer" for source in param_sources for name in source)
            raise ValueError(
                f"optimizers: {k!r} belongs to no model or loss; there can be {', '.join(known)}"
            )
        parameters = list(module.parameters())
        if not parameters:
            logging.info("%s is left out: there is nothing to optimize", k)
            return {}
        groups = _parameter_groups(module, parameters, prototypes_lr)
        created: dict[str, Any] = super()._create_general(
            specs, k, [{name: SimpleNamespace(parameters=lambda: groups)}]
        )
        if max_norm is not None:
            created["gradient_clipper"] = _gradient_clipper(parameters, max_norm)
        return created

    def format_named_specs_output(
        self, named_specs_output: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Names optimizers, schedulers and clippers as PML's trainers want them.

        Args:
            named_specs_output: what was created for each optimizer.

        Returns:
            Optimizers, learning rate schedulers, and gradient clippers.
        """
        optimizers, lr_schedulers, gradient_clippers = {}, {}, {}
        for name, created in named_specs_output.items():
            if "optimizer" in created:
                optimizers[name] = created["optimizer"]
            lr_schedulers.update(created.get("lr_scheduler", {}))
            if "gradient_clipper" in created:
                gradient_clippers[name.removesuffix("_optimizer") + "_grad_clipper"] = created[
                    "gradient_clipper"
                ]
        return optimizers, lr_schedulers, gradient_clippers


def _parameter_groups(
    module: torch.nn.Module, parameters: Iterable[torch.nn.Parameter], prototypes_lr: float | None
) -> list[dict[str, Any]]:
    if prototypes_lr is None or not isinstance(module, PrototypePoolingTrunk):
        return [{"params": list(parameters)}]
    others = [parameter for parameter in parameters if parameter is not module.prototypes]
    return [
        {"params": others},
        {"params": [module.prototypes], "lr": prototypes_lr, "record_name": "prototypes_lr"},
    ]


def _gradient_clipper(parameters: list[torch.nn.Parameter], max_norm: float) -> Callable[[], torch.Tensor]:
    return lambda: torch.nn.utils.clip_grad_norm_(parameters, max_norm)
