import pytest
import torch

from pml_xbml.monitoring.figures import resized_maps
from pml_xbml.monitoring.prototype_view import view_prototypes
from pml_xbml.trunks import PrototypePooling, PrototypePoolingTrunk

LEFT, RIGHT = torch.tensor([1.0, 0.0, 0.2]), torch.tensor([0.0, 1.0, 0.2])
EMBEDDER = torch.nn.Identity()
LABELS = torch.zeros(2, dtype=torch.long)


def halves(height, width):
    """Two images (2, 3, H, W) whose left half has one color, and whose right half another."""
    image = RIGHT.view(3, 1, 1).expand(3, height, width).clone()
    image[:, :, : width // 2] = LEFT.view(3, 1, 1)
    return torch.stack([image, image])


class Patches(torch.nn.Module):
    """Tokens (B, N, 3), the mean colors of the image's patches, row by row."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)


def set_prototypes(trunk):
    trunk.pooling.prototypes.data = torch.stack([RIGHT, LEFT])
    return trunk


def trunk_of(layout, **options):
    backbone = torch.nn.AvgPool2d(4) if layout == "maps" else Patches()
    return set_prototypes(PrototypePoolingTrunk(backbone, num_prototypes=2, **options))


@pytest.mark.parametrize("layout", ["maps", "tokens"])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_the_prototype_of_the_left_half_lights_up_on_the_left_alone(layout, size):
    needs_grid = layout == "tokens" and size[0] != size[1]
    token_grid = (size[0] // 4, size[1] // 4) if needs_grid else None
    images = halves(*size)
    view = view_prototypes(trunk_of(layout), EMBEDDER, images, LABELS, token_grid)
    assert view.assignments.shape == (2, 2, size[0] // 4, size[1] // 4)

    left, right = resized_maps(view.assignments[:, 1], size), resized_maps(view.assignments[:, 0], size)
    middle = size[1] // 2
    # Bilinear resizing blends over the width of a local feature, 4 pixels, around the border.
    assert (left[:, :, : middle - 2] > 0.99).all()
    assert (left[:, :, middle + 2 :] < 0.01).all()
    assert torch.allclose(right, 1 - left, atol=1e-6)
    assert (view.hard_assignments[:, :, : middle // 4] == 1).all()
    assert (view.hard_assignments[:, :, middle // 4 :] == 0).all()


def test_agrees_with_the_pooling():
    trunk = trunk_of("maps", eval_histograms=True)
    images = torch.rand(5, 3, 8, 8)
    view = view_prototypes(trunk, torch.nn.Linear(3, 2), images, torch.arange(5), batch_size=2)
    trunk.eval()(images)
    assert torch.allclose(view.histograms, trunk.histograms)
    assert torch.equal(view.prototypes, trunk.prototypes)
    assert torch.equal(view.images, images)
    assert view.embeddings.shape == (5, 2)


def test_leaves_the_trunk_as_it_was():
    trunk = trunk_of("maps").train()
    trunk.pooling.eval()
    images, random_state = torch.rand(2, 3, 8, 8), torch.get_rng_state()
    view_prototypes(trunk, EMBEDDER, images, LABELS)
    assert trunk.training
    assert not trunk.pooling.training
    assert not trunk.pooling._forward_pre_hooks
    assert torch.equal(random_state, torch.get_rng_state())


def test_shows_normalized_and_gray_images():
    trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), PrototypePooling(3, 2))
    images = torch.randn(2, 1, 8, 8)
    shown = view_prototypes(trunk, EMBEDDER, images, LABELS).images
    assert shown.shape == (2, 3, 8, 8)
    assert shown.amin((1, 2, 3)).tolist() == [0, 0]
    assert shown.amax((1, 2, 3)).tolist() == [1, 1]
    # Stretched, and nothing else: an affine function of what came.
    first, came = shown[0, 0].flatten(), images[0, 0].flatten()
    assert torch.corrcoef(torch.stack([first, came]))[0, 1] == pytest.approx(1)


def test_takes_the_first_level_of_labels():
    labels = torch.tensor([[3, 0], [4, 1]])
    assert view_prototypes(trunk_of("maps"), EMBEDDER, halves(8, 8), labels).labels.tolist() == [3, 4]


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="wrap it in a PrototypePoolingTrunk"):
        view_prototypes(torch.nn.Conv2d(3, 3, 1), EMBEDDER, halves(8, 8), LABELS)
    with pytest.raises(ValueError, match=r"of the 12 tokens .* got None, and they make no square"):
        view_prototypes(trunk_of("tokens"), EMBEDDER, halves(8, 24), LABELS)
    with pytest.raises(ValueError, match=r"of the 12 tokens .* got 3 x 5"):
        view_prototypes(trunk_of("tokens"), EMBEDDER, halves(8, 24), LABELS, token_grid=(3, 5))
