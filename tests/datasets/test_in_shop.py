import pytest
import torch
from PIL import Image
from pytorch_metric_learning.datasets.base_dataset import BaseDataset
from torchvision import transforms

from pml_xbml.datasets import InShop

# As in the file that is distributed: a count, the names of the columns, then padded columns.
HEADER = "{}\nimage_name item_id evaluation_status\n"
ROWS = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg", "id_00000001", "query"),
    ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "train"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_2_side.jpg", "id_00000001", "gallery"),
    ("img/MEN/Tees_Tanks/id_00000090/01_1_front.jpg", "id_00000090", "gallery"),
    ("img/MEN/Tees_Tanks/id_00000090/01_7_additional.jpg", "id_00000090", "gallery"),
    ("img/MEN/Tees_Tanks/id_00000090/02_1_front.jpg", "id_00000090", "query"),
]
LABELS = {"id_00000002": 0, "id_00000080": 1, "id_00000001": 2, "id_00000090": 3}


def partition(rows=ROWS, count=None):
    count = len(rows) if count is None else count
    return HEADER.format(count) + "".join(
        f"{name:<70} {item}  {status}      \n" for name, item, status in rows
    )


def build(partition_file, image_folder, text=None):
    """The data set with its partition file and its folder of images at the given places."""
    partition_file.parent.mkdir(parents=True, exist_ok=True)
    partition_file.write_text(partition() if text is None else text)
    for i, (name, _, _) in enumerate(ROWS):
        path = image_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # One without colors, which InShop has to turn into RGB.
        Image.new("L" if i == 0 else "RGB", (8, 12), "gray").save(path)


@pytest.fixture
def root(tmp_path):
    build(tmp_path / "Eval" / "list_eval_partition.txt", tmp_path / "Img")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_each_split_has_the_rows_of_its_status(root, split):
    dataset = InShop(str(root), split=split)
    expected = [(root / "Img" / name, LABELS[item]) for name, item, status in ROWS if status == split]
    assert dataset.paths == [str(path) for path, _ in expected]
    assert dataset.labels == [label for _, label in expected]
    assert len(dataset) == len(expected)


def test_is_a_dataset_in_the_manner_of_pml(root):
    dataset = InShop(root)
    assert isinstance(dataset, BaseDataset)
    assert dataset.split == "train"
    assert dataset.get_available_splits() == ["train", "query", "gallery"]
    for i in range(len(dataset)):
        image, label = dataset[i]
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("RGB", (8, 12))
        assert type(label) is int


def test_labels_of_training_items_start_at_zero_and_others_are_shared_by_query_and_gallery(root):
    train, query, gallery = (InShop(root, split=split) for split in ("train", "query", "gallery"))
    assert set(train.labels) == {0, 1}
    assert set(query.labels) == set(gallery.labels) == {2, 3}


@pytest.mark.parametrize("home", [".", "In-shop Clothes Retrieval Benchmark"])
@pytest.mark.parametrize("annotations", ["Eval", "Anno", "."])
@pytest.mark.parametrize("images", ["Img", "."])
def test_is_found_where_people_put_it(tmp_path, home, annotations, images):
    home = tmp_path / home
    build(home / annotations / "list_eval_partition.txt", home / images)
    dataset = InShop(tmp_path, split="query")
    assert dataset.labels == [2, 3]
    assert dataset[0][0].size == (8, 12)


def test_transforms_are_applied(root):
    dataset = InShop(root, "gallery", transforms.ToTensor(), lambda label: label + 100)
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    assert images.shape == (3, 3, 12, 8)
    assert labels.tolist() == [102, 103, 103]


@pytest.mark.parametrize("exists", [True, False])
def test_download_raises_says_where_to_get_it_and_leaves_no_folder(tmp_path, root, exists):
    folder = root if exists else tmp_path / "new" / "inshop"
    with pytest.raises(ValueError, match="download must be False, got True") as error:
        InShop(folder, download=True)
    assert "mmlab.ie.cuhk.edu.hk/projects/DeepFashion" in str(error.value)
    assert str(folder) in str(error.value)
    assert "list_eval_partition.txt" in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="root must be a folder") as error:
        InShop(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "download=True" not in str(error.value)
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_split_is_named(root):
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'query', 'gallery'\], got 'test'"):
        InShop(root, split="test")


def test_a_missing_partition_file_is_named(root):
    (root / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"list_eval_partition\.txt is missing") as error:
        InShop(root)
    assert str(root / "Eval" / "list_eval_partition.txt") in str(error.value)


def test_a_missing_image_folder_is_named(root):
    (root / "Img").rename(root / "Pictures")
    with pytest.raises(FileNotFoundError, match="img is missing") as error:
        InShop(root)
    assert str(root / "Img" / "img") in str(error.value)


def test_missing_images_are_counted_and_the_first_is_named(root):
    missing = root / "Img" / ROWS[1][0]
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 images .* for 'train' are missing") as error:
        InShop(root)
    assert str(missing) in str(error.value)
    assert len(InShop(root, split="query")) == 2


TRAIN, SIDE, QUERY = (" ".join(row) for row in ROWS[:3])


@pytest.mark.parametrize(
    ("lines", "number", "expected"),
    [
        ([], 1, "the number of images, got the end of the file"),
        (["image_name item_id evaluation_status"], 1, "the number of images, got 'image_name"),
        (["²", *HEADER.splitlines()[1:]], 1, "the number of images, got '²'"),
        (["8"], 2, "'image_name item_id evaluation_status', got the end of the file"),
        (
            ["8", "img/a.jpg id_1 train"],
            2,
            "'image_name item_id evaluation_status', got 'img/a.jpg id_1 train'",
        ),
        (["img/a.jpg id_1"], 11, "an image, an item and one of train, query, gallery, got 'img/a.jpg id_1'"),
        (["img/a.jpg id_1 val"], 11, "an image, an item and one of train, query, gallery, got"),
        (["img/a b.jpg id_1 train"], 11, "an image, an item and one of train, query, gallery, got"),
        (["", "../../a.jpg id_1 train"], 12, "an image inside of the data set's folder, got '../../a.jpg"),
        (["img/../../a.jpg id_1 train"], 11, "an image inside of the data set's folder"),
        (["/img/a.jpg id_1 train"], 11, "an image inside of the data set's folder"),
        ([TRAIN], 11, "an image that no other line lists, as line 3 does, got 'img/WOMEN/Dresses"),
        ([SIDE.replace("id_00000002 ", "id_1 ")], 11, "an image that no other line lists, as line 4 does"),
        ([QUERY.replace("query", "gallery")], 11, "an image that no other line lists, as line 5 does"),
        ([QUERY.replace("img/", "img/./")], 11, "an image that no other line lists, as line 5 does"),
        (["img/a.jpg id_00000001 train"], 11, "of another item: line 5 has id_00000001 in query, got"),
        (["img/a.jpg id_00000080 gallery"], 11, "of another item: line 6 has id_00000080 in train, got"),
    ],
)
def test_a_malformed_line_is_named(root, lines, number, expected):
    path = root / "Eval" / "list_eval_partition.txt"
    kept = partition().splitlines() if number > 2 else []
    path.write_text("\n".join([*kept, *lines]), encoding="utf-8")
    with pytest.raises(ValueError, match="must be") as error:
        InShop(root)
    assert f"line {number} of {path} must be {expected}" in str(error.value)


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_a_split_without_images_is_named(root, split):
    path = root / "Eval" / "list_eval_partition.txt"
    rows = [row for row in ROWS if row[2] != split]
    path.write_text(partition(rows))
    with pytest.raises(ValueError, match="must be") as error:
        InShop(root)
    assert f"line {len(rows) + 3} of {path} must be an image of {split}, which has none" in str(error.value)


@pytest.mark.parametrize("count", [0, 7, 9])
def test_a_count_that_does_not_fit_is_named(root, count):
    path = root / "Eval" / "list_eval_partition.txt"
    path.write_text(partition(count=count))
    with pytest.raises(ValueError, match="must be") as error:
        InShop(root)
    assert f"line 1 of {path} must be the number of images, 8 up to line 10, got '{count}'" in str(
        error.value
    )


def test_a_query_of_which_the_gallery_has_nothing_is_named(root):
    path = root / "Eval" / "list_eval_partition.txt"
    rows = [*ROWS, ("img/WOMEN/x.jpg", "id_00000500", "query")]
    path.write_text(partition(rows))
    with pytest.raises(ValueError, match="in the gallery") as error:
        InShop(root)
    assert f"line {len(rows) + 2} of {path} must be of an item in the gallery, where no image of" in str(
        error.value
    )


@pytest.mark.parametrize(("encoding", "number"), [("latin-1", 4), ("utf-16", 1)])
def test_another_encoding_is_named(root, encoding, number):
    path = root / "Eval" / "list_eval_partition.txt"
    first, second, *others = ROWS
    rows = [first, (second[0].replace("img/", "img/Röcke/"), *second[1:]), *others]
    path.write_bytes(partition(rows).encode(encoding))
    with pytest.raises(ValueError, match=f"line {number} of .* must be text in UTF-8, got b'"):
        InShop(root)


def test_a_byte_order_mark_and_empty_lines_are_no_error(root):
    (root / "Eval" / "list_eval_partition.txt").write_text(
        "\ufeff" + partition() + "\n  \n", encoding="utf-8"
    )
    assert len(InShop(root)) == 3


def test_a_broken_image_is_named(root):
    path = root / "Img" / ROWS[0][0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be read") as error:
        InShop(root)[0]
    assert str(path) in str(error.value)
