from pathlib import Path
from typing import Any

from pytorch_metric_learning.losses import ContrastiveLoss
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from .. import monitoring
from ..datasets._images import open_image
from ..trunks import PrototypePoolingTrunk
from .loaded_run import LoadedRun, load_run, recorded_run
from .models import cross_batch_loss
from .train import PICTURE_FOLDER


class _ImageFiles(Dataset[tuple[Any, int]]):
    """All images below a folder; each folder with images in it counts as a class."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        folders = sorted({path.parent for path in self.paths})
        self.labels = [folders.index(path.parent) for path in self.paths]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(open_image(self.paths[index])), self.labels[index]


def look(run_dir: str | Path, images: str | Path | None = None, num_images: int = 64) -> list[Path]:
    """Makes the pictures of a saved run again, as it was after its best epoch.

    Args:
        run_dir: the folder of an XML run.
        images: a folder of images to look at, in folders of classes or not; the test classes if left out.
        num_images: how many images to look at, at most.

    Returns:
        The PNG files, in the run's folder of pictures.

    Raises:
        ValueError: if there is no run, it is not an XML run, it has no model that can be loaded or a
            formulation of the ablation's, or there are no images that can be read.
    """
    run = recorded_run(Path(run_dir))
    if run.arm != "xml":
        raise ValueError(
            f"the run in {str(run_dir)!r} has the arm {run.arm!r}, without prototypes to look at; give "
            "an XML run"
        )
    loaded = load_run(run_dir)
    assert isinstance(loaded.trunk, PrototypePoolingTrunk)
    name, dataset = _dataset(loaded, images)
    try:
        loss = cross_batch_loss(loaded.run, ContrastiveLoss(), loaded.trunk)
    except TypeError as error:
        raise ValueError(
            f"the run in {str(run_dir)!r} is one of the ablation, whose formulation "
            f"{dict(loaded.run.loss_options)} the loss does not have; give a run of demo or compare"
        ) from error
    return monitoring.look(
        loaded.trunk,
        loaded.embedder,
        dataset,
        Path(run_dir, PICTURE_FOLDER, f"best_epoch_{loaded.best_epoch}_{name}"),
        num_images,
        loss=loss,
    )


def _dataset(loaded: LoadedRun, images: str | Path | None) -> tuple[str, Any]:
    if images is None:
        return "test_classes", loaded.splits.test[loaded.splits.test_query]
    files = _ImageFiles(Path(images), loaded.splits.val.transform)
    if len(files) == 0:
        raise ValueError(
            f"images: there are none in {str(images)!r} with one of the endings {', '.join(IMG_EXTENSIONS)}"
        )
    return Path(images).resolve().name, files
