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


def test_says_what_is_wrong(xml_folder, tiny_run, tiny_xml_run, tmp_path):
    with pytest.raises(ValueError, match="images: there are none in"):
        look(xml_folder, tmp_path)
    train(tiny_run, tmp_path / "plain", split="validation")
    with pytest.raises(ValueError, match="is a plain one, without prototypes"):
        look(tmp_path / "plain")
    run = dataclasses.replace(tiny_xml_run, train_classes=6, loss_options={"total": "additive"})
    train(run, tmp_path / "ablation", split="validation", make_loss=ablation_loss)
    with pytest.raises(ValueError, match=r"one of the ablation, whose formulation .*additive"):
        look(tmp_path / "ablation")
