import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from pml_xbml.monitoring import look
from pml_xbml.monitoring.visualize import sample_images
from pml_xbml.trunks import PrototypePoolingTrunk

ALL_PICTURES = [
    "most_used_prototypes", "hard_assignment_maps", "prototype_use", "prototype_similarities",
    "expressed_and_actual_embeddings",
]  # fmt: skip


@pytest.fixture
def trunk():
    return PrototypePoolingTrunk(torch.nn.Conv2d(3, 6, 3), num_prototypes=4)


def dataset_of(labels):
    return TensorDataset(torch.rand(len(labels), 3, 12, 12), torch.tensor(labels))


def test_look_draws_every_picture(trunk, tmp_path):
    dataset = dataset_of([0, 0, 0, 0, 1, 1, 1, 1])
    paths = look(trunk, torch.nn.Linear(6, 3), dataset, tmp_path / "new" / "folder")
    assert [path.stem for path in paths] == ALL_PICTURES
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 0
    assert trunk.training


def test_one_class_has_no_halves_to_express(trunk, tmp_path):
    paths = look(trunk, torch.nn.Identity(), dataset_of([5, 5, 5]), tmp_path)
    assert [path.stem for path in paths] == ALL_PICTURES[:-1]


def test_pictures_are_the_same_every_time(trunk, tmp_path):
    dataset = dataset_of([0, 0, 0, 0, 1, 1, 1, 1])
    first, second = (look(trunk, torch.nn.Identity(), dataset, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(
    ("size", "num_images", "expected"),
    [
        (100, 8, [0, 1, 2, 3, 96, 97, 98, 99]),
        (100, 3, [0, 1, 2]),
        (100, 1, [0]),
        (6, 64, [0, 1, 2, 3, 4, 5]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_samples_are_runs_of_neighbors(size, num_images, expected):
    _, labels = sample_images(dataset_of(list(range(size))), num_images)
    assert labels.tolist() == expected


def test_sampling_draws_no_random_number_for_good():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            noise = random.random() + np.random.rand() + torch.rand(1)  # noqa: NPY002
            return noise.expand(3, 4, 4), 0

    first, _ = sample_images(Noise(), 4)
    second, _ = sample_images(Noise(), 4)
    assert torch.equal(first, second)


def test_takes_pmls_getter_and_collate_function():
    images, labels = sample_images(
        dataset_of([1, 2]),
        2,
        lambda batch: (batch["data"], batch["label"]),
        lambda items: {"data": torch.stack([item[0] for item in items]), "label": [7, 8]},
    )
    assert images.shape == (2, 3, 12, 12)
    assert labels.tolist() == [7, 8]


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="dataset must hold at least one image, got an empty one"):
        sample_images(dataset_of([]), 4)
