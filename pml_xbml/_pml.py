"""All that the core takes from pytorch-metric-learning (PML) beyond its documented classes.

The core (``losses``, ``trunks``, ``samplers``, ``datasets``) uses PML's public classes by their public names,
``pytorch_metric_learning.losses.ContrastiveLoss`` say. All else comes from here. Each name below is looked
up in PML when it is used: importing this module imports nothing, and a logger or a random generator that a
user has replaced is the one that is found.

Where version 3 has a name is what its public documentation says (the guide on migration from version 2, the
pages on ``GenericPairLoss``, ``BaseMetricLossFunction`` and index utilities, the release notes). Version 3
could not be run here, and "not found" means that those pages do not say.

``CrossBatchPrototypeLoss`` also extends ``BaseMetricLossFunction``. Of what it inherits, version 3 keeps
``compute_loss`` and the embedding regularizer, which is applied by ``regularization_terms`` there; it has
``default_distance`` in place of ``get_default_distance``; ``reset_stats``, ``add_to_recordable_attributes``
and ``collect_stats`` went with the recorded statistics; ``set_reducer`` and ``sub_loss_names``: not found.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

# Where version 2 has each name, below ``pytorch_metric_learning``.
MODULES = {
    # The random generator that the samplers draw from.
    # Version 3: not found.
    "NUMPY_RANDOM": "utils.common_functions",
    # The base class of data sets with a folder, splits and a download.
    # Version 3: removed with the data sets; ``torch.utils.data.Dataset`` serves.
    "BaseDataset": "datasets.base_dataset",
    # All positive and negative pairs that labels make.
    # Version 3: in ``utils.indexing``, which replaces ``utils.loss_and_miner_utils``.
    "get_all_pairs_indices": "utils.loss_and_miner_utils",
    # The base class of losses of pairs. Its ``compute_loss`` makes all pairs of the labels if it gets none.
    # Version 3: ``losses.GenericPairLoss``, public, which does so too.
    "GenericPairLoss": "losses.generic_pair_loss",
    # Whether there is a process group.
    # Version 3: not found; ``torch.distributed`` says the same.
    "is_distributed": "utils.distributed",
    # The rows of all other processes in the order in which ``DistributedLossWrapper`` gathers embeddings.
    # Version 3: not found; the wrapper itself is in ``pytorch_metric_learning.distributed``.
    "all_gather": "utils.distributed",
}


# What PrototypePooling and its trunk take, which work without PML: it is asked where it is imported already.
def collects_stats_by_default() -> bool:
    """PML's default of ``collect_stats`` for all its modules; False where PML is not in use.

    Version 3: removed with the recorded statistics.
    """
    return bool(getattr(_imported_common_functions(), "COLLECT_STATS", False))


def logger() -> logging.Logger:
    """PML's logger, under the name that ``set_logger_name`` gives it; its first name where PML is not in use.

    Version 3: not found; ``common_functions`` is private there.
    """
    found: logging.Logger = getattr(_imported_common_functions(), "LOGGER", logging.getLogger("PML"))
    return found


def _imported_common_functions() -> ModuleType | None:
    return sys.modules.get("pytorch_metric_learning.utils.common_functions")


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pytorch_metric_learning.{MODULES[name]}"), name)
