import shutil

import pytest
import torch

from pml_xbml.comparison.class_subset import ClassSubset
from pml_xbml.comparison.image_folder import FEWEST_CLASSES
from pml_xbml.comparison.splits import load_splits, split_classes
from pml_xbml.datasets import Glyphs


def source_classes(subset):
    return set(subset.classes)


def test_split_classes_deals_each_class_once_and_always_the_same_way():
    labels = [label % 20 for label in range(200)]
    first, second = split_classes(labels, 5)
    assert len(first) == 5
    assert sorted(first + second) == list(range(20))
    assert (first, second) == split_classes(reversed(labels), 5)
    assert first != list(range(5))


def test_class_subset_relabels_and_transforms():
    dataset = [("a", 7), ("b", 3), ("c", 9), ("d", 3)]
    subset = ClassSubset(dataset, [label for _, label in dataset], {9, 3}, transform=str.upper)
    assert subset.classes == [3, 9]
    assert subset.labels == [0, 1, 0]
    items = [("B", 0), ("C", 1), ("D", 0)]
    assert [subset[index] for index in range(len(subset))] == items
    subset.keep_in_memory()
    dataset.clear()
    assert [subset[index] for index in range(len(subset))] == items


def test_glyphs():
    splits = load_splits("glyphs", train_classes=64)
    test = Glyphs(split="test")
    assert len(splits.train.classes) == 64
    assert source_classes(splits.train).isdisjoint(splits.val.classes)
    assert source_classes(splits.train) | source_classes(splits.val) == set(Glyphs(split="train").labels)
    assert source_classes(splits.test["test"]) == set(test.labels)
    assert (splits.test_query, splits.test_reference) == ("test", "test")
    image, label = splits.train[0]
    assert image.shape == (3, 32, 32)
    assert label == 0
    assert load_splits("glyphs", train_classes=64, image_size=48).val[0][0].shape == (3, 48, 48)


def test_few_training_classes_are_some_of_many():
    few, many = (source_classes(load_splits("glyphs", train_classes=number).train) for number in (64, 296))
    assert few < many


def test_folder(image_folder):
    splits = load_splits(str(image_folder), image_size=16)
    parts = [splits.train, splits.val, splits.test["test"]]
    assert [len(part.classes) for part in parts] == [6, 3, 3]
    assert set.union(*map(source_classes, parts)) == set(range(12))
    assert all(part[0][0].shape == (3, 16, 16) for part in parts)
    # Training images are cropped and flipped at random, the others are not.
    assert not torch.equal(splits.train[0][0], splits.train[0][0])
    assert torch.equal(splits.val[0][0], splits.val[0][0])


def test_the_fewest_classes_that_a_folder_may_have_suffice(image_folder, tmp_path):
    folder = tmp_path / "six"
    folder.mkdir()
    for class_folder in sorted(image_folder.iterdir())[:FEWEST_CLASSES]:
        shutil.copytree(class_folder, folder / class_folder.name)
    splits = load_splits(str(folder), image_size=16)
    parts = [splits.train, splits.val, splits.test["test"]]
    assert [len(part.classes) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize("train_classes", [0, 1, 485])
def test_train_classes_have_to_leave_some_for_validation(train_classes):
    with pytest.raises(
        ValueError, match=f"train_classes .* between 2 and 484 for glyphs, got {train_classes}"
    ):
        load_splits("glyphs", train_classes=train_classes)


@pytest.mark.parametrize("dataset", ["cub", "cars196", "sop", "inshop"])
def test_data_sets_that_lie_in_a_folder_ask_for_it(dataset):
    with pytest.raises(ValueError, match=f"root: give the folder of {dataset}"):
        load_splits(dataset)


@pytest.mark.parametrize("dataset", ["cub", "cars196", "sop", "inshop"])
def test_a_folder_that_is_not_there_is_named(dataset):
    with pytest.raises(ValueError, match=f"root: there is no folder '/nowhere'; give that of {dataset}"):
        load_splits(dataset, root="/nowhere")


def write_images(root, paths):
    from PIL import Image

    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 24), color=index).save(root / path)


def test_cub_keeps_its_own_test_classes(tmp_path):
    """The real layout, with four classes on each side and two images a class."""
    classes = [1, 2, 3, 4, 101, 102, 103, 104]
    names = [f"{label:03d}.Bird/{index}.jpg" for label in classes for index in range(2)]
    folder = tmp_path / "CUB_200_2011"
    write_images(folder / "images", names)
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    labels = [label for label in classes for _ in range(2)]
    (folder / "image_class_labels.txt").write_text(
        "".join(f"{i} {label}\n" for i, label in enumerate(labels, 1))
    )
    splits = load_splits("cub", root=str(tmp_path), train_classes=2)
    assert source_classes(splits.train) | source_classes(splits.val) == {1, 2, 3, 4}
    assert (len(splits.train.classes), len(splits.val.classes)) == (2, 2)
    assert source_classes(splits.test["test"]) == {101, 102, 103, 104}
    assert splits.val[0][0].shape == (3, 224, 224)


def test_cars196_keeps_its_own_test_classes(tmp_path):
    """The real layout: the lists of the images' own two sides, each of which has cars of all classes."""
    labels = [1, 2, 3, 4, 99, 100]
    names = [f"Car {label} Coupe/Sedan" for label in range(1, 197)]
    (tmp_path / "names.csv").write_text("\n".join(names) + "\n")
    for side in ("train", "test"):
        rows = [f"{label:05d}_{index}.jpg,0,0,9,9,{label}" for label in labels for index in range(2)]
        (tmp_path / f"anno_{side}.csv").write_text("\n".join(rows) + "\n")
        folders = [f"Car {label} Coupe-Sedan" for label in labels for _ in range(2)]
        write_images(
            tmp_path / "car_data" / "car_data" / side,
            [f"{folder}/{row.split(',')[0]}" for folder, row in zip(folders, rows, strict=True)],
        )
    splits = load_splits("cars196", root=str(tmp_path), train_classes=2)
    assert source_classes(splits.train) | source_classes(splits.val) == {1, 2, 3, 4}
    assert source_classes(splits.test["test"]) == {99, 100}
    assert len(splits.test["test"]) == 8
    assert splits.test["test"][0][0].shape == (3, 224, 224)


def test_sop_keeps_its_own_test_classes(tmp_path):
    folder = tmp_path / "Stanford_Online_Products"
    image_id = 0
    for side, labels in (("train", [1, 2, 3, 4]), ("test", [11319, 11320])):
        rows = ["image_id class_id super_class_id path"]
        for label in labels:
            for index in range(2):
                image_id += 1
                rows.append(f"{image_id} {label} 1 bicycle_final/{label}_{index}.JPG")
        folder.mkdir(exist_ok=True)
        (folder / f"Ebay_{side}.txt").write_text("\n".join(rows) + "\n")
        write_images(folder, [row.split()[3] for row in rows[1:]])
    splits = load_splits("sop", root=str(tmp_path), train_classes=2)
    assert source_classes(splits.train) | source_classes(splits.val) == {1, 2, 3, 4}
    assert source_classes(splits.test["test"]) == {11319, 11320}
    assert splits.train[0][0].shape == (3, 224, 224)


def test_inshop_looks_for_queries_in_the_gallery(tmp_path):
    rows = [
        f"img/WOMEN/{item}/{index}.jpg {item} {status}"
        for item, status in [("id_1", "train"), ("id_2", "train"), ("id_3", "train"), ("id_4", "train")]
        for index in range(2)
    ]
    rows += [
        f"img/MEN/id_{item}/{status}.jpg id_{item} {status}"
        for item in (6, 7)
        for status in ("query", "gallery")
    ]
    rows.append("img/MEN/id_5/gallery.jpg id_5 gallery")
    write_images(tmp_path, [row.split()[0] for row in rows])
    (tmp_path / "list_eval_partition.txt").write_text(
        f"{len(rows)}\nimage_name item_id evaluation_status\n" + "\n".join(rows) + "\n"
    )
    splits = load_splits("inshop", root=str(tmp_path), train_classes=2)
    assert (len(splits.train.classes), len(splits.val.classes)) == (2, 2)
    assert set(splits.test) == {"query", "gallery"}
    assert (splits.test_query, splits.test_reference) == ("query", "gallery")
    # An item that nothing looks for does not shift the labels of the others.
    assert splits.test["query"].labels == [1, 2]
    assert sorted(splits.test["gallery"].labels) == [0, 1, 2]


def test_a_root_without_the_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"root must be the folder of cub .*, which lacks '.*CUB_200"):
        load_splits("cub", root=str(tmp_path))
