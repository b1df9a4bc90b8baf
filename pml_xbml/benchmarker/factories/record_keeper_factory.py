from typing import Any

from powerful_benchmarker import factories
from pytorch_metric_learning.utils import logging_presets

from ..record_keeper import RecordKeeper


class RecordKeeperFactory(factories.RecordKeeperFactory):
    """Builds record keepers that powerful-benchmarker can call."""

    def _create_general(self, record_keeper_type: dict[str, Any]) -> RecordKeeper:
        # PML 1.0 and record-keeper 0.9.31 record no figures any more.
        arguments = {k: v for k, v in record_keeper_type.items() if k != "save_figures"}
        keeper, record_writer, tensorboard_writer = logging_presets.get_record_keeper(**arguments)
        return RecordKeeper(tensorboard_writer, record_writer, keeper.attributes_to_search_for)
