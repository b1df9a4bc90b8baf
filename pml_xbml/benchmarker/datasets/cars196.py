from typing import ClassVar

from pytorch_metric_learning import datasets

from .under_common_root import UnderCommonRootMixin


class Cars196(UnderCommonRootMixin, datasets.Cars196):
    """PML's Cars196, in the folder ``cars196`` of the data sets' root."""

    folder: ClassVar[str] = "cars196"
