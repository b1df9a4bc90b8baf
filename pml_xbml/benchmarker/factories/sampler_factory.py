import copy
import inspect
from typing import Any

import numpy as np
from powerful_benchmarker import factories


class SamplerFactory(factories.SamplerFactory):
    """Builds samplers with the trainer's batch size, if they cannot do without one."""

    def _create_general(
        self,
        sampler_type: dict[str, Any],
        labels: np.ndarray[Any, Any],
        length_before_new_iter: int,
        batch_size: int,
    ) -> Any:
        sampler, arguments = self.getter.get("sampler", yaml_dict=sampler_type, return_uninitialized=True)
        arguments = copy.deepcopy(arguments)
        batch_size_parameter = inspect.signature(sampler).parameters.get("batch_size")
        if batch_size_parameter is not None and batch_size_parameter.default is inspect.Parameter.empty:
            arguments.setdefault("batch_size", batch_size)
        if arguments.get("length_before_new_iter") == "dataset_length":
            arguments["length_before_new_iter"] = length_before_new_iter
        return super()._create_general({sampler.__name__: arguments}, labels, length_before_new_iter)
