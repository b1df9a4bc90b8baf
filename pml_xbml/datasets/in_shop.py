import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .. import _pml
from ._images import open_image

_SPLITS = ("train", "query", "gallery")


class InShop(_pml.BaseDataset):
    """DeepFashion In-shop Clothes Retrieval: find the other photographs of an item of clothing.

    Z. Liu, P. Luo, S. Qiu, X. Wang and X. Tang, "DeepFashion: Powering Robust Clothes Recognition and
    Retrieval with Rich Annotations", CVPR 2016. 25,882 images of 3,997 items to train on; 14,218 images of
    3,985 other items to search with ("query") among 12,612 images of the same items ("gallery").

    Its terms forbid a free download. Ask for it at ``InShop.HOMEPAGE`` and put it like this (the folders as
    distributed; with or without the outermost, and with ``img`` and the text file directly in ``root`` too)::

        root/
            In-shop Clothes Retrieval Benchmark/
                Eval/list_eval_partition.txt
                Img/img/MEN/..., Img/img/WOMEN/...

    Args:
        root: the folder that holds the data set.
        split: "train", "query" or "gallery".
        transform: takes an RGB PIL image and returns what stands for it in the items.
        target_transform: takes the label and returns what stands for it in the items.
        download: must be False. It is here because PML's data sets have it.

    Attributes:
        labels: the label of each image, an int. Items to train on are 0 .. T-1, the others T .. K-1; an item
            has the same label in "query" and in "gallery".
        paths: the file of each image.

    Raises:
        ValueError: if ``download`` is true, if there is no such split, if ``root`` is not a folder, or if
            ``list_eval_partition.txt`` is malformed: a line is not as distributed, an image is listed twice
            or lies outside of the folder, an item is both to train on and to search, or to search with and
            not in the gallery, a split is empty, or the file is cut short or no UTF-8. The message names the
            line.
        FileNotFoundError: if ``list_eval_partition.txt`` or an image of the split is missing.
    """

    HOMEPAGE = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
    DISTRIBUTED_FOLDER = "In-shop Clothes Retrieval Benchmark"
    PARTITION_FILE = "list_eval_partition.txt"

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        download: bool = False,
    ) -> None:
        # PML's own checks would make the folder first, and advise a download.
        if download:
            raise ValueError(
                f"download must be False, got {download}: InShop cannot be downloaded freely. {_advice(root)}"
            )
        if split not in self.get_available_splits():
            raise ValueError(f"split must be one of {self.get_available_splits()}, got {split!r}")
        if not Path(root).is_dir():
            raise ValueError(f"root must be a folder, got {str(root)!r}. {_advice(root)}")
        super().__init__(root, split, transform, target_transform)

    def get_available_splits(self) -> list[str]:
        return list(_SPLITS)

    def generate_split(self) -> None:
        root = Path(self.root)
        homes = [root, root / self.DISTRIBUTED_FOLDER]
        partition_file = _first_existing(
            [home / folder / self.PARTITION_FILE for home in homes for folder in ("Eval", "Anno", "")], root
        )
        image_folder = _first_existing(
            [home / folder / "img" for home in homes for folder in ("Img", "")], root
        ).parent
        rows = _read_partition(partition_file)

        train_items = {row.item_id for row in rows if row.status == "train"}
        other_items = {row.item_id for row in rows} - train_items
        label_of = {item_id: i for i, item_id in enumerate(sorted(train_items) + sorted(other_items))}
        chosen = [row for row in rows if row.status == self.split]
        self.paths = [str(image_folder / row.image_name) for row in chosen]
        self.labels = [label_of[row.item_id] for row in chosen]

        missing = [path for path in self.paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self.paths)} images that {partition_file} lists for "
                f"{self.split!r} are missing; the first is {missing[0]}"
            )

    def download_and_remove(self) -> None:
        raise NotImplementedError(_advice(self.root))

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        img: Any = open_image(self.paths[idx])
        label: Any = self.labels[idx]
        if self.transform is not None:
            img = self.transform(img)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return img, label


class _Row(NamedTuple):
    image_name: str
    item_id: str
    status: str


def _advice(root: str | Path) -> str:
    home = Path(root, InShop.DISTRIBUTED_FOLDER)
    return (
        f"Ask for it at {InShop.HOMEPAGE}, then put Eval/{InShop.PARTITION_FILE} and the unpacked "
        f"Img/img.zip at {home / 'Eval' / InShop.PARTITION_FILE} and {home / 'Img' / 'img'}."
    )


def _first_existing(paths: list[Path], root: Path) -> Path:
    for path in paths:
        if path.exists():
            return path
    looked_at = ", ".join(str(path) for path in paths)
    raise FileNotFoundError(f"{paths[0].name} is missing: none of {looked_at} exists. {_advice(root)}")


def _read_partition(path: Path) -> list[_Row]:
    """The rows of the file: a count, then the names of the columns, then a row an image."""
    # Some editors start the file with a byte order mark.
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {number} of {path} must be text in UTF-8, got {content[error.start : error.end]!r}"
        ) from error

    def malformed(number: int, expected: str) -> ValueError:
        came = repr(lines[number - 1]) if number <= len(lines) else "the end of the file"
        return ValueError(f"line {number} of {path} must be {expected}, got {came}")

    if not lines or not lines[0].strip().isdecimal():
        raise malformed(1, "the number of images")
    if len(lines) < 2 or tuple(lines[1].split()) != ("image_name", "item_id", "evaluation_status"):
        raise malformed(2, "'image_name item_id evaluation_status'")
    rows: list[_Row] = []
    line_of_image: dict[str, int] = {}
    first_of_item: dict[str, tuple[int, str]] = {}  # line and status
    first_query: dict[str, int] = {}  # line
    for number, line in enumerate(lines[2:], start=3):
        values = line.split()
        if not values:
            continue
        if len(values) != 3 or values[2] not in _SPLITS:
            raise malformed(number, "an image, an item and one of train, query, gallery")
        row = _Row(*values)
        image = posixpath.normpath(row.image_name)
        if posixpath.isabs(image) or image.startswith(".."):
            raise malformed(number, "an image inside of the data set's folder")
        line_of_this = line_of_image.setdefault(image, number)
        if line_of_this != number:
            raise malformed(number, f"an image that no other line lists, as line {line_of_this} does")
        line_of_item, status = first_of_item.setdefault(row.item_id, (number, row.status))
        if (status == "train") != (row.status == "train"):
            raise malformed(number, f"of another item: line {line_of_item} has {row.item_id} in {status}")
        if row.status == "query":
            first_query.setdefault(row.item_id, number)
        rows.append(row)
    if len(rows) != int(lines[0]):
        raise malformed(1, f"the number of images, {len(rows)} up to line {len(lines)}")
    for split in _SPLITS:
        if all(row.status != split for row in rows):
            raise malformed(len(lines) + 1, f"an image of {split}, which has none")
    in_gallery = {row.item_id for row in rows if row.status == "gallery"}
    for item_id, number in first_query.items():
        if item_id not in in_gallery:
            raise malformed(number, f"of an item in the gallery, where no image of {item_id} is")
    return rows
