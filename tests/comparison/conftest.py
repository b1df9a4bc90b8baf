import dataclasses

import numpy as np
import pytest
from PIL import Image

from pml_xbml.comparison import METRICS, Result, RunConfig
from pml_xbml.monitoring.figure_writer import FigureWriter

NUM_CLASSES = 12
IMAGES_PER_CLASS = 4


@pytest.fixture(scope="module", autouse=True)
def _without_pictures():
    """Pictures take longer than the tiny runs; their own tests draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureWriter, "write", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A user's folder: a class is a color, its images are noisy."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, color in enumerate(generator.normal(128, 12, size=(NUM_CLASSES, 3))):
        class_folder = folder / f"class_{label:02d}"
        class_folder.mkdir()
        for index in range(IMAGES_PER_CLASS):
            noisy = color + generator.normal(0, 60, size=(16, 16, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(class_folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_run(image_folder):
    """A run of two seconds: three epochs of two iterations."""
    return RunConfig(
        dataset=str(image_folder),
        train_classes=None,
        image_size=16,
        embedding_size=8,
        batch_size=8,
        samples_per_class=2,
        iterations=6,
        iterations_per_epoch=2,
        pooling_options={"num_prototypes": 4},
        prototype_images=8,
    )


@pytest.fixture(scope="session")
def tiny_xml_run(tiny_run):
    return dataclasses.replace(tiny_run, cross_batch_weight=0.5)


@pytest.fixture(scope="session")
def make_result():
    """Makes a result whose metrics all have one value."""

    def make(seed, test, weight=None, loss="contrastive", validation=0.5, best_epoch=1, **options):
        settings = {"iterations": 800, "iterations_per_epoch": 100, **options}
        run = RunConfig(loss=loss, cross_batch_weight=weight, seed=seed, **settings)
        return Result(
            run=run,
            best_epoch=best_epoch,
            validation=dict.fromkeys(METRICS, validation),
            test=None if test is None else dict.fromkeys(METRICS, test),
            history={metric: [validation] for metric in METRICS},
            cover_radius=None,
            seconds=1.0,
        )

    return make


@pytest.fixture(scope="session")
def make_results(make_result):
    """Makes plain results of 50% and XML results that differ from them by what is given."""

    def make(differences, weight=0.1, **options):
        plain = [make_result(seed, 0.5, **options) for seed in range(len(differences))]
        xml = [
            make_result(seed, 0.5 + by, weight, best_epoch=1 + seed % 3, **options)
            for seed, by in enumerate(differences)
        ]
        return plain + xml

    return make
