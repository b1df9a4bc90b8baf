"""PML's data sets, each in a folder of its own under a root that all data sets share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pytorch_metric_learning import datasets


class _UnderCommonRootMixin:
    """One of PML's data sets, in its own folder under a root that all data sets share.

    Images are RGB, which some of these data sets' files are not.

    Args:
        root: the folder of all data sets.
        transform: Takes an RGB PIL image.
        download: whether PML is to download the data set, if its folder is missing or empty.
        **options: The data set's other arguments.

    Raises:
        FileNotFoundError: if the data set's folder is not there.
    """

    folder: ClassVar[str]
    paths: list[str]
    labels: list[int]
    transform: Callable[[Any], Any] | None

    def __init__(
        self,
        root: str,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        own_root = Path(root, self.folder)
        if not download and not own_root.is_dir():
            raise FileNotFoundError(
                f"The data set {type(self).__name__} is not there: {str(own_root)!r} is not a folder. Put it "
                f"there, give the folder above it as --dataset_root, or have it downloaded with "
                f"--dataset {{{type(self).__name__}: {{download: True}}}}"
            )
        super().__init__(root=str(own_root), transform=transform, download=download, **options)  # type: ignore[call-arg]

    def __getitem__(self, idx: int) -> tuple[Any, int]:
        image: Any = Image.open(self.paths[idx]).convert("RGB")
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[idx]


class CUB(_UnderCommonRootMixin, datasets.CUB):
    """PML's CUB."""

    folder = "cub"


class Cars196(_UnderCommonRootMixin, datasets.Cars196):
    """PML's Cars196."""

    folder = "cars196"


class StanfordOnlineProducts(_UnderCommonRootMixin, datasets.StanfordOnlineProducts):
    """PML's StanfordOnlineProducts."""

    folder = "sop"
