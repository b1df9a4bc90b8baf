import copy
from typing import Any

from powerful_benchmarker import factories
from powerful_benchmarker.utils import common_functions as benchmarker_c_f

from ...losses import CrossBatchPrototypeLoss
from .miner_factory import MinerFactory


class LossFactory(factories.LossFactory):
    """Builds losses, with the losses and miners that are nested in them.

    In YAML a wrapper's loss, or losses, are written as any other; ``CrossBatchPrototypeLoss``,
    ``CrossBatchMemory`` and ``MultipleLosses`` may be nested in each other as PML allows. What a loss can be
    told from the run it is told: ``num_classes``, ``embedding_size``, and ``pooling``, the trunk whose
    histograms ``CrossBatchPrototypeLoss`` reads.
    """

    def _create_general(
        self,
        loss_type: dict[str, Any],
        num_classes: int | None = None,
        embedding_size: int | None = None,
        pooling: Any = None,
    ) -> Any:
        loss, arguments = self.getter.get(
            "loss", yaml_dict=copy.deepcopy(loss_type), return_uninitialized=True
        )
        from_the_run = {"num_classes": num_classes, "embedding_size": embedding_size}
        if issubclass(loss, CrossBatchPrototypeLoss):
            from_the_run["pooling"] = pooling
        for name, value in from_the_run.items():
            if value is not None and benchmarker_c_f.check_init_arguments(loss, name):
                arguments.setdefault(name, value)

        def create_loss(specs: dict[str, Any]) -> Any:
            return self._create_general(specs, num_classes, embedding_size, pooling)

        for name, nested in arguments.items():
            if nested is None:
                continue
            if name in ("loss", "expressed_loss"):
                arguments[name] = create_loss(nested)
            elif name == "losses":
                arguments[name] = [create_loss({k: v}) for k, v in nested.items()]
            elif name == "miner":
                arguments[name] = self._create_miner(nested)
            elif name == "miners":
                arguments[name] = [None if specs is None else self._create_miner(specs) for specs in nested]
            elif name.endswith("_regularizer"):
                arguments[name] = self.get_nested_regularizer(nested)
            elif name == "weight_init_func":
                arguments[name] = self.get_weight_init_func(nested)
            elif name in self.nested_regularizer_objects:
                arguments[name] = self.getter.get(name, yaml_dict=nested)
        return loss(**arguments)

    def _create_miner(self, specs: dict[str, Any]) -> Any:
        return MinerFactory(getter=self.getter).create(specs)
