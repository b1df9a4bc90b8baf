from typing import ClassVar

from pytorch_metric_learning import datasets

from .under_common_root import UnderCommonRootMixin


class CUB(UnderCommonRootMixin, datasets.CUB):
    """PML's CUB, in the folder ``cub`` of the data sets' root."""

    folder: ClassVar[str] = "cub"
