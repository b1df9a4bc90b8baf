from pml_xbml.comparison.data_summary import data_summary
from pml_xbml.comparison.splits import load_splits


def test_the_sizes_of_all_splits_are_told(image_folder):
    splits = load_splits(str(image_folder), image_size=16)
    images_per_class = len(splits.train) // len(splits.train.classes)
    expected = "; ".join(
        f"{name}: {len(part.classes)} classes, {len(part.classes) * images_per_class} images"
        for name, part in (
            ("training", splits.train),
            ("validation", splits.val),
            ("test", splits.test["test"]),
        )
    )
    assert data_summary(splits, samples_per_class=2) == f"{expected}. Images of 16 pixels."


def test_small_classes_are_told(image_folder):
    splits = load_splits(str(image_folder), image_size=16)
    classes = len(splits.train.classes)
    text = data_summary(splits, samples_per_class=1000)
    assert (
        f"{classes} of {classes} training classes have fewer images than a batch takes of a class, 1000"
        in text
    )
