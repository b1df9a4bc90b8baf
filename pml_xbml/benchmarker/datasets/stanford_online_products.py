from typing import ClassVar

from pytorch_metric_learning import datasets

from .under_common_root import UnderCommonRootMixin


class StanfordOnlineProducts(UnderCommonRootMixin, datasets.StanfordOnlineProducts):
    """PML's StanfordOnlineProducts, in the folder ``sop`` of the data sets' root."""

    folder: ClassVar[str] = "sop"
