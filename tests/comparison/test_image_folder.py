import shutil

import pytest

from pml_xbml.comparison.image_folder import check_images, open_image_folder


@pytest.fixture
def folder(image_folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(image_folder, tmp_path / "images")


def test_good_folder(image_folder):
    dataset = open_image_folder(image_folder)
    assert len(dataset.classes) == 12
    check_images(dataset)


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
    with pytest.raises(ValueError, match=r"class_03.2\.png' cannot be read .*mend or remove it"):
        check_images(open_image_folder(folder))
