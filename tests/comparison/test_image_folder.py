import shutil

import numpy as np
import pytest
from PIL import Image

from pml_xbml.comparison.image_folder import (
    check_images,
    check_no_own_reference,
    default_image_size,
    describe_unusual,
    open_image_folder,
    open_image_folders,
)
from pml_xbml.comparison.splits import load_splits


@pytest.fixture
def folder(image_folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(image_folder, tmp_path / "images")


def test_good_folder(image_folder):
    dataset = open_image_folder(image_folder)
    assert len(dataset.classes) == 12
    check_images([dataset])


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*missing"):
        open_image_folder(tmp_path / "missing")


def test_no_classes(tmp_path):
    with pytest.raises(ValueError, match=r"has 0 class folder\(s\) \(none\)"):
        open_image_folder(tmp_path)


def test_one_class(folder):
    for class_folder in sorted(folder.iterdir())[1:]:
        shutil.rmtree(class_folder)
    with pytest.raises(ValueError, match=r"has 1 class folder\(s\) \(class_00\).* at least 6"):
        open_image_folder(folder)


def test_empty_class(folder):
    for image in (folder / "class_07").iterdir():
        image.unlink()
    (folder / "class_07" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"class_07' has 0 image\(s\)"):
        open_image_folder(folder)


def test_class_of_one_image(folder):
    for image in sorted((folder / "class_07").iterdir())[1:]:
        image.unlink()
    with pytest.raises(ValueError, match=r"class_07' has 1 image\(s\)"):
        open_image_folder(folder)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_broken_image(folder, content):
    image = folder / "class_03" / "2.png"
    image.write_bytes(image.read_bytes()[:300] if content is None else content)
    with pytest.raises(
        ValueError, match=r"1 image\(s\) cannot be read; mend or remove them: .*class_03.2\.png'"
    ):
        check_images([open_image_folder(folder)])


def test_all_broken_images_are_named(folder):
    for name in ("class_03/2.png", "class_05/0.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 image\(s\) cannot be read.*class_03.2\.png.*class_05.0\.png"):
        check_images([open_image_folder(folder)])


def test_images_of_16_bits_keep_their_scale(folder):
    image = folder / "class_03" / "2.png"
    Image.fromarray(np.full((16, 16), 126 * 257, dtype=np.uint16)).save(image)
    dataset = open_image_folder(folder)
    check_images([dataset])
    (index,) = (i for i, (path, _) in enumerate(dataset.samples) if path == str(image))
    assert np.asarray(dataset[index][0]).mean() == 126


@pytest.mark.parametrize(("side", "expected"), [(48, 48), (300, 224)])
def test_the_default_size_is_that_of_smaller_images(side, expected, tmp_path):
    for label in range(6):
        (tmp_path / f"{label}").mkdir()
        for number in range(2):
            Image.new("RGB", (side, side + 10)).save(tmp_path / f"{label}" / f"{number}.png")
    assert default_image_size(open_image_folder(tmp_path)) == expected
    assert load_splits(str(tmp_path)).train[0][0].shape == (3, expected, expected)


@pytest.fixture
def split(folder, tmp_path):
    """Gives classes to parts: class_00 and class_01 to the first, and so on."""

    def split(**parts):
        target = tmp_path / "split"
        for part, numbers in parts.items():
            (target / part).mkdir(parents=True)
            for number in numbers:
                shutil.copytree(folder / f"class_{number:02d}", target / part / f"class_{number:02d}")
        return target

    return split


def names(subset):
    """The class folders of a split's images."""
    return {subset.dataset.samples[index][0].split("/")[-2][-2:] for index in subset.indices}


def test_a_given_split_is_kept(split):
    splits = load_splits(str(split(train=range(4), val=range(4, 6), test=range(6, 10))))
    assert names(splits.train) == {"00", "01", "02", "03"}
    assert names(splits.val) == {"04", "05"}
    assert names(splits.test["test"]) == {"06", "07", "08", "09"}
    assert (splits.test_query, splits.test_reference) == ("test", "test")


def test_without_val_some_training_classes_validate(split):
    splits = load_splits(str(split(train=range(8), test=range(8, 12))), train_classes=5)
    assert len(names(splits.train)) == 5
    assert names(splits.train) | names(splits.val) == {f"{number:02d}" for number in range(8)}
    assert not names(splits.train) & names(splits.val)


def test_queries_are_looked_for_in_the_gallery(split):
    root = split(train=range(4), query=range(4, 7), gallery=range(4, 8))
    for image in sorted((root / "query" / "class_05").iterdir())[1:]:
        image.unlink()
    splits = load_splits(str(root))
    assert (splits.test_query, splits.test_reference) == ("query", "gallery")
    query, gallery = splits.test["query"], splits.test["gallery"]
    # One label is one class in both.
    for subset in (query, gallery):
        for index, label in zip(subset.indices, subset.labels, strict=True):
            assert subset.dataset.samples[index][0].split("/")[-2] == f"class_{4 + label:02d}"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [0, 1, 2, 3, 4], "test": [4, 5, 6]}, r"train and test must share no class, got class_04"),
        (
            {"train": [0, 1, 2, 3], "val": [5, 6], "test": [6, 7]},
            r"val and test must share no class, got class_06",
        ),
        ({"train": [0, 1, 2, 3], "test": [0, 1, 2]}, r"all classes of test are in train too.*closed-set"),
        ({"train": [0, 1, 2, 3], "query": [4, 5], "gallery": [5, 6]}, r"got class_04 in query alone"),
        ({"train": [0, 1, 2, 3], "query": [4, 5]}, r"must have train/ and either test/ or query/ and"),
        ({"train": [0, 1, 2], "test": [4, 5]}, r"has 3 class folder"),
        ({"val": range(6)}, r"must have train/ and either .*, got val/$"),
        ({"train": range(6)}, r"must have train/ and either .*, got train/$"),
        ({"train": range(6), "val": [6, 7]}, r"must have train/ and either .*, got train/, val/$"),
        ({"query": [4, 5], "gallery": [4, 5]}, r"must have train/ and either .*, got query/, gallery/$"),
        ({"train": range(4), "test": []}, r"test' has 0 class folder\(s\) \(none\)"),
    ],
)
def test_a_split_that_cannot_be_kept_is_refused(split, parts, message):
    with pytest.raises(ValueError, match=message):
        open_image_folders(split(**parts))


def test_images_in_a_part_itself_are_no_classes(split, folder):
    root = split(train=[], test=[0, 1])
    shutil.copy(folder / "class_04" / "0.png", root / "train")
    with pytest.raises(ValueError, match=r"train' has 0 class folder"):
        open_image_folders(root)


def test_a_class_may_be_called_as_a_part(folder):
    (folder / "class_03").rename(folder / "test")
    (folder / "class_04").rename(folder / "train")
    assert set(open_image_folders(folder)) == {"all"}


def test_classes_one_folder_further_down_are_pointed_at(folder, tmp_path):
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "photographs")
    with pytest.raises(ValueError, match=r"has 1 class folder.*; did you mean '.*outer.photographs'\?"):
        open_image_folders(tmp_path / "outer")


def test_a_query_that_is_in_the_gallery_is_refused(split):
    root = split(train=range(4), query=[4, 5], gallery=[4, 5])
    for number in (4, 5):
        for name in ("0.png", "1.png"):
            (root / "query" / f"class_{number:02d}" / name).unlink()
            (root / "gallery" / f"class_{number:02d}" / f"{3 - int(name[0])}.png").unlink()
    parts = open_image_folders(root)
    check_no_own_reference(parts)
    (root / "gallery" / "class_05" / "again.png").write_bytes(
        (root / "query" / "class_05" / "2.png").read_bytes()
    )
    with pytest.raises(
        ValueError, match=r"share no image, got .*query.class_05.2\.png' and .*again\.png', the same"
    ):
        check_no_own_reference(open_image_folders(root))


def test_what_may_be_a_mistake_is_described(folder, split):
    assert describe_unusual(open_image_folders(folder).values()) == []
    (folder / "class_02" / "photo.heic").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"")
    shutil.copy(folder / "class_04" / "0.png", folder / "loose.png")
    (folder / "class_07" / "inner").mkdir()
    (folder / "class_07" / "0.png").rename(folder / "class_07" / "inner" / "0.png")
    left_out, nested = describe_unusual(open_image_folders(folder).values())
    assert left_out.startswith("Left out: 2 file(s) ")
    assert f"{folder / 'class_02' / 'photo.heic'}, {folder / 'loose.png'}." in left_out
    assert f"below it: {folder / 'class_07'} hold(s)" in nested
