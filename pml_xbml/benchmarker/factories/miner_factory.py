import copy
from typing import Any

from powerful_benchmarker import factories


class MinerFactory(factories.MinerFactory):
    """Builds miners, with the distance that is nested in them."""

    def _create_general(self, miner_type: dict[str, Any]) -> Any:
        miner, arguments = self.getter.get(
            "miner", yaml_dict=copy.deepcopy(miner_type), return_uninitialized=True
        )
        if "distance" in arguments:
            arguments["distance"] = self.getter.get("distance", yaml_dict=arguments["distance"])
        return super()._create_general({miner.__name__: arguments})
