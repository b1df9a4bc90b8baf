from typing import Any

import torch
from powerful_benchmarker import factories
from powerful_benchmarker.utils import common_functions as benchmarker_c_f

from ...trunks import PrototypePoolingTrunk

# What the transforms are made by; pretrainedmodels' networks have them.
_IMAGE_PROPERTIES = ("mean", "std", "input_space", "input_range")


class _PrototypeTrunkMixin:
    """Trunks by the network that is nested in ``PrototypePoolingTrunk``, and networks without an ``fc``."""

    getter: Any
    base_model_output_size: Any

    def create_trunk(self, model_type: dict[str, Any]) -> torch.nn.Module:
        """Builds a trunk.

        Args:
            model_type: ``{Name: arguments}``. The ``trunk`` of a ``PrototypePoolingTrunk`` is written like
                this too.

        Returns:
            The network up to its average.

        Raises:
            ValueError: if a ``PrototypePoolingTrunk`` has no network to wrap, or cannot tell where that
                averages.
        """
        model, arguments = self.getter.get("model", yaml_dict=model_type, return_uninitialized=True)
        if model is PrototypePoolingTrunk:
            if "trunk" not in arguments:
                raise ValueError(
                    "models: PrototypePoolingTrunk needs the network that it wraps, "
                    f"{{trunk: {{resnet50: {{weights: DEFAULT}}}}}}, got {arguments}"
                )
            network: torch.nn.Module = self.getter.get("model", yaml_dict=arguments["trunk"])
            trunk = PrototypePoolingTrunk(**{**arguments, "trunk": network})
            self.base_model_output_size = trunk.num_features
            return _with_image_properties(trunk, network)
        network = model(**arguments)
        last_linear = benchmarker_c_f.get_last_linear(network)
        if isinstance(last_linear, torch.nn.Linear):
            self.base_model_output_size = last_linear.in_features
            benchmarker_c_f.set_last_linear(network, torch.nn.Identity())
            return network
        # The network as PrototypePoolingTrunk sees it, so that runs with and without prototypes compare.
        wrapped = PrototypePoolingTrunk(network)
        self.base_model_output_size = wrapped.num_features
        return _with_image_properties(wrapped.unwrap(), network)


class ModelFactory(_PrototypeTrunkMixin, factories.ModelFactory):
    """powerful-benchmarker's, for any trunk that :class:`~pml_xbml.trunks.PrototypePoolingTrunk` can wrap."""


class ClassifierModelFactory(_PrototypeTrunkMixin, factories.ClassifierModelFactory):
    """:class:`ModelFactory` for trainers with a classifier."""


class GeneratorModelFactory(_PrototypeTrunkMixin, factories.GeneratorModelFactory):
    """:class:`ModelFactory` for trainers with a generator."""


def _with_image_properties(trunk: torch.nn.Module, network: torch.nn.Module) -> torch.nn.Module:
    for name in _IMAGE_PROPERTIES:
        if hasattr(network, name):
            setattr(trunk, name, getattr(network, name))
    return trunk
