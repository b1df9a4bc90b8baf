import dataclasses
import shutil

import pytest

from pml_xbml.comparison import look, train
from tests.studies.ablation_loss import ablation_loss


@pytest.fixture(scope="module")
def xml_folder(tiny_xml_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xml")
    train(tiny_xml_run, folder, split="validation")
    return folder


def test_looks_at_the_test_classes(xml_folder):
    paths = look(xml_folder)
    assert len(paths) == 5
    assert all(path.stat().st_size > 0 for path in paths)
    assert paths[0].parent.parent == xml_folder / "pictures"
    assert paths[0].parent.name.endswith("test_classes")


@pytest.mark.parametrize("flat", [True, False])
def test_looks_at_images_of_ones_own(xml_folder, image_folder, tmp_path, flat):
    images = tmp_path / "mine"
    images.mkdir()
    for path in sorted(image_folder.rglob("*.png"))[:8]:
        shutil.copy(path, images / f"{path.parent.name}_{path.name}")
        if not flat:
            (images / path.parent.name).mkdir(exist_ok=True)
            (images / f"{path.parent.name}_{path.name}").rename(images / path.parent.name / path.name)
    paths = look(xml_folder, images)
    # Two halves without a class in common need two classes.
    assert len(paths) == (4 if flat else 5)
    assert paths[0].parent.name.endswith("mine")


OWN_NETWORK = """
import torch


def maps():
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)
    return torch.nn.Sequential(*layers)
"""


@pytest.mark.parametrize("freeze", [None, "1"])
def test_looks_at_a_network_of_ones_own_and_at_frozen_stages(tiny_xml_run, freeze, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_NETWORK)
    run = dataclasses.replace(tiny_xml_run, trunk=f"{tmp_path / 'mine.py'}:maps", freeze=freeze, iterations=2)
    train(run, tmp_path / "run", split="validation")
    assert len(look(tmp_path / "run")) == 5
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ValueError, match="trunk must name a function that can be imported"):
        look(tmp_path / "run")


def test_looks_at_a_run_that_was_stopped(tiny_xml_run, tmp_path):
    counts = []

    def stop(count):
        counts.append(count)
        if sum(counts) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_xml_run, tmp_path, on_iterations=stop)
    [first, *_] = look(tmp_path)
    assert first.parent.name == "best_epoch_1_test_classes"


def test_runs_without_prototypes_are_named(tiny_run, tiny_xml_run, tmp_path):
    train(dataclasses.replace(tiny_run, iterations=0), tmp_path / "untouched")
    train(dataclasses.replace(tiny_xml_run, control=True, iterations=2), tmp_path / "control")
    for arm in ("untouched", "control"):
        with pytest.raises(ValueError, match=f"has the arm '{arm}', without prototypes"):
            look(tmp_path / arm)


@pytest.mark.parametrize("text", ["{", '{"unheard_of": 1}', "[]"])
def test_settings_of_another_version(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json' must hold the settings of a run of this version"):
        look(tmp_path)


def test_models_and_images_that_cannot_be_read(xml_folder, tmp_path):
    folder = shutil.copytree(xml_folder, tmp_path / "run")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"the image .*a\.png. cannot be read"):
        look(folder, tmp_path / "images")
    [model] = (folder / "models").glob("trunk_best*")
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the models in .* must be those of the run"):
        look(folder)


def test_says_what_is_wrong(xml_folder, tiny_run, tiny_xml_run, tmp_path):
    with pytest.raises(ValueError, match="images: there are none in"):
        look(xml_folder, tmp_path)
    train(tiny_run, tmp_path / "plain", split="validation")
    with pytest.raises(ValueError, match="has the arm 'plain', without prototypes"):
        look(tmp_path / "plain")
    run = dataclasses.replace(tiny_xml_run, train_classes=6, loss_options={"total": "additive"})
    train(run, tmp_path / "ablation", split="validation", make_loss=ablation_loss)
    with pytest.raises(ValueError, match=r"one of the ablation, whose formulation .*additive"):
        look(tmp_path / "ablation")
