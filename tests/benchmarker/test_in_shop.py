import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.nn.functional import normalize
from torchvision import transforms

from pml_xbml.benchmarker import datasets as datasets_of_benchmarker
from pml_xbml.benchmarker.query_gallery_split_manager import QueryGallerySplitManager
from pml_xbml.datasets import InShop
from pml_xbml.trunks import SmallTrunk

SPLITS = ("train", "val", "test", "gallery")
ACCURACIES = "accuracies_normalized_GlobalEmbeddingSpaceTester_level_0"


def embed(models, images):
    trunk, embedder = SmallTrunk(), torch.nn.Linear(128, 128)
    trunk.load_state_dict(torch.load(models / "trunk_best1.pth"))
    state = torch.load(models / "embedder_best1.pth")
    embedder.load_state_dict({name: state[f"net.0.{name}"] for name in ("weight", "bias")})
    trunk.eval()
    with torch.no_grad():
        return normalize(embedder(trunk(images)))


@pytest.fixture
def experiment(run, fake_datasets):
    arguments = [
        "--dataset_root", str(fake_datasets),
        "--experiment_name", "in_shop",
        "--config_dataset", "[in_shop]",
        "--config_protocol", "[small]",
        "--config_loss_and_miners", "[contrastive]",
    ]  # fmt: skip
    folder = run(
        *arguments,
        "--num_epochs_train", "1",
        "--save_interval", "1",
        "--check_untrained_accuracy", "False",
        "--trainer", "{MetricLossOnly: {iterations_per_epoch: 2, batch_size: 8}}",
        "--split_manager", "{QueryGallerySplitManager: {num_training_sets: 2}}",
        "--transforms", "{train: {CenterCrop: {size: 16}}, eval: {CenterCrop: {size: 16}}}",
    )  # fmt: skip
    for what in ("--evaluate", "--evaluate_ensemble"):
        run(*arguments[:4], what, "--splits_to_eval", "[test]")
    return folder / "experiments" / "in_shop"


def test_queries_are_searched_for_in_the_gallery(experiment, fake_datasets, logs):
    transform = transforms.Compose(
        [
            # small.yaml's, and that of the command line above.
            transforms.Resize(32),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    parts = {
        split: InShop(str(fake_datasets / "in_shop"), split, transform=transform)
        for split in ("query", "gallery")
    }
    labels = {split: torch.tensor(part.labels) for split, part in parts.items()}
    images = {split: torch.stack([image for image, _ in part]) for split, part in parts.items()}
    calculator = AccuracyCalculator(
        include=("mean_average_precision_at_r", "precision_at_1"), k="max_bin_count"
    )
    of_folds = []
    for fold in ("QueryGallery_Partitions4_0", "QueryGallery_Partitions4_1"):
        models = experiment / fold / "saved_models"
        of_folds.append({split: embed(models, batch) for split, batch in images.items()})
        expected = calculator.get_accuracy(
            of_folds[-1]["query"], labels["query"], of_folds[-1]["gallery"], labels["gallery"]
        )
        (recorded,) = logs.database(
            experiment / fold / "saved_csvs" / "logs.db", f"{ACCURACIES}_TEST_vs_GALLERY"
        )
        for metric, value in expected.items():
            assert recorded[f"{metric}_level0"] == pytest.approx(value, abs=1e-6)
    together = {split: torch.cat([fold[split] for fold in of_folds], dim=1) for split in images}
    expected = calculator.get_accuracy(
        together["query"], labels["query"], together["gallery"], labels["gallery"]
    )
    (recorded,) = logs.database(
        experiment / "meta_logs" / "saved_csvs" / "logs.db",
        f"ConcatenateEmbeddings_{ACCURACIES}_TEST_vs_GALLERY",
    )
    for metric, value in expected.items():
        assert recorded[f"{metric}_level0"] == pytest.approx(value, abs=1e-6)


def test_splits_are_those_of_the_data_set(fake_datasets):
    datasets = {
        transform: {split: datasets_of_benchmarker.InShop(str(fake_datasets)) for split in SPLITS}
        for transform in ("train", "eval")
    }
    manager = QueryGallerySplitManager(num_training_partitions=4, num_training_sets=3)
    manager.create_split_schemes(datasets)
    assert manager.num_split_schemes == 3
    of_the_data_set = {
        split: InShop(str(fake_datasets / "in_shop"), split) for split in ("train", "query", "gallery")
    }
    validated = []
    for scheme in manager.split_scheme_names:
        manager.set_curr_split_scheme(scheme)
        labels = {split: manager.get_labels("eval", split).tolist() for split in SPLITS}
        assert labels["test"] == of_the_data_set["query"].labels
        assert labels["gallery"] == of_the_data_set["gallery"].labels
        assert sorted(labels["train"] + labels["val"]) == sorted(of_the_data_set["train"].labels)
        assert set(labels["train"]).isdisjoint(labels["val"])
        validated += list(set(labels["val"]))
        assert list(manager.get_dataset_dict("eval", ["val"])) == ["val"]
        assert list(manager.get_dataset_dict("eval", ["test"])) == ["test", "gallery"]
    # Each class to train on validates once in four ways, of which three are trained.
    assert len(validated) == len(set(validated)) == 18
