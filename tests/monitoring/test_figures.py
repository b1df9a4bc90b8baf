import dataclasses
import re

import matplotlib.pyplot
import numpy as np
import pytest
import torch

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.monitoring import figures
from pml_xbml.monitoring.prototype_view import PrototypeView
from pml_xbml.monitoring.visualize import rendered
from pml_xbml.trunks import PrototypePooling

NUM_IMAGES, NUM_PROTOTYPES, SIDE = 12, 5, 96


@pytest.fixture
def view():
    """Prototype i is used the more the smaller i is; image i has class i // 3."""
    logits = torch.randn(NUM_IMAGES, NUM_PROTOTYPES, 3, 3) - torch.arange(NUM_PROTOTYPES).view(-1, 1, 1)
    return PrototypeView(
        images=torch.rand(NUM_IMAGES, 3, SIDE, SIDE),
        labels=torch.arange(NUM_IMAGES) // 3,
        assignments=logits.softmax(1),
        embeddings=torch.randn(NUM_IMAGES, 4),
        prototypes=torch.randn(NUM_PROTOTYPES, 6),
    )


def shown_image(figure):
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def tiles(mosaic):
    """The images of a mosaic, (rows, columns, SIDE, SIDE, 3)."""
    step = SIDE + figures._GAP
    return np.stack(
        [
            [mosaic[top : top + SIDE, left : left + SIDE] for left in range(0, mosaic.shape[1], step)]
            for top in range(0, mosaic.shape[0], step)
        ]
    )


def test_resized_values_stay_in_the_middle_of_their_place():
    maps = torch.tensor([[[0.0, 1.0]]])
    assert figures.resized_maps(maps, (2, 4)).tolist() == [[[0, 0.25, 0.75, 1]] * 2]


def test_most_used_prototypes_are_in_order_with_their_best_images(view):
    figure = figures.most_used_prototypes(view, num_prototypes=2, num_images=4)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    use = view.assignments.mean((0, 2, 3))
    first, second = use.argsort(descending=True)[:2].tolist()
    assert labels[0].startswith(f"prototype {first}\nmean share {use[first]:.1%}\ngreatest share ")
    assert labels[1].startswith(f"prototype {second}\nmean share {use[second]:.1%}\ngreatest share ")

    shown = tiles(shown_image(figure))
    assert shown.shape[:2] == (2, 4)
    best = view.assignments[:, first].mean((1, 2)).argmax()
    # Where the prototype has no share the gray image comes through, so the overlay follows the map.
    gray = view.images[best].mean(0)
    difference = np.abs(shown[0, 0].mean(-1) - 0.7 * gray.numpy())
    share = figures.resized_maps(view.assignments[best, first][None], (SIDE, SIDE))[0]
    low, high = share < share.quantile(0.1), share > share.quantile(0.9)
    assert difference[low].mean() < difference[high].mean()


def test_the_legend_of_a_single_row_of_images_is_whole(view):
    many = torch.rand(NUM_IMAGES, 16, 6, 6).softmax(1)
    few_images = dataclasses.replace(view, assignments=many, prototypes=torch.randn(16, 6))
    figure = figures.hard_assignment_maps(few_images, num_images=2, images_per_row=4)
    rendered(figure)
    (legend,) = figure.legends
    (foot,) = [text for text in figure.texts if text.get_text().startswith("Beside each image")]
    bounds = legend.get_window_extent()
    assert bounds.y0 >= foot.get_window_extent().y1
    assert bounds.y1 <= figure.bbox.y1


def test_hard_assignment_maps_have_the_colors_of_the_legend(view):
    figure = figures.hard_assignment_maps(view, num_images=NUM_IMAGES, images_per_row=4)
    shown = tiles(shown_image(figure))
    assert shown.shape[:2] == (3, 8)
    np.testing.assert_allclose(shown[0, 0], view.images[0].permute(1, 2, 0), atol=1e-6)
    (legend,) = figure.legends
    colors = {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    hard = view.assignments.argmax(1)
    for image in range(NUM_IMAGES):
        for row in range(3):
            for column in range(3):
                middle = shown[image // 4, 2 * (image % 4) + 1][row * 32 + 16, column * 32 + 16]
                expected = colors[f"prototype {hard[image, row, column]}"]
                np.testing.assert_allclose(middle, expected, atol=1e-6)


def test_rare_prototypes_are_gray():
    view = PrototypeView(
        images=torch.rand(1, 3, SIDE, SIDE),
        labels=torch.zeros(1),
        assignments=torch.eye(16).reshape(1, 16, 4, 4),
        embeddings=torch.randn(1, 4),
        prototypes=torch.randn(16, 6),
    )
    (legend,) = figures.hard_assignment_maps(view).legends
    assert len(legend.get_texts()) == 11
    assert legend.get_texts()[-1].get_text() == "6 others"


def test_prototype_use_is_sorted(view):
    axes = figures.prototype_use(view).axes[0]
    line = axes.lines[0].get_ydata()
    use = view.assignments.mean((0, 2, 3))
    np.testing.assert_allclose(line, 100 * np.sort(use.numpy())[::-1], rtol=1e-5)
    assert f"perplexity {torch.exp(-(use * use.log()).sum()):.1f} of 5" in axes.get_title()
    best = view.assignments.argmax(1)
    heights = [bar.get_height() for bar in axes.patches]
    expected = [100 * (best == index).float().mean() for index in use.argsort(descending=True)]
    np.testing.assert_allclose(heights, expected, rtol=1e-5)


def test_prototype_similarities_are_cosines(view):
    shown = shown_image(figures.prototype_similarities(view))
    expected = torch.nn.functional.cosine_similarity(
        view.prototypes[:, None], view.prototypes[None], dim=-1
    ).numpy()
    np.testing.assert_allclose(np.diag(shown), 1)
    np.testing.assert_allclose(np.sort(shown.flatten()), np.sort(expected.flatten()), atol=1e-6)


DRAW = [
    figures.most_used_prototypes,
    figures.hard_assignment_maps,
    figures.prototype_use,
    figures.prototype_similarities,
    lambda view: figures.expressed_and_actual_embeddings(view, CrossBatchPrototypeLoss()),
]


@pytest.mark.parametrize("num_prototypes", [1, 2])
@pytest.mark.parametrize("draw", DRAW)
def test_few_prototypes(num_prototypes, draw):
    view = PrototypeView(
        images=torch.rand(2, 3, 8, 8),
        labels=torch.arange(2),
        assignments=torch.rand(2, num_prototypes, 2, 2).softmax(1),
        embeddings=torch.randn(2, 4),
        prototypes=torch.randn(num_prototypes, 6),
    )
    assert rendered(draw(view)).ndim == 3


@pytest.mark.parametrize("draw", DRAW)
def test_every_figure_says_at_its_foot_how_to_read_it(view, draw):
    figure = draw(view)
    assert re.search("Good: .* Bad: ", figure.get_supxlabel().replace("\n", " "))
    figure.draw_without_rendering()
    for text in figure.texts:
        if text.get_text() == figure.get_supxlabel():
            extent = text.get_window_extent()
            assert extent.x0 >= 0
            assert extent.x1 <= figure.bbox.x1
            assert extent.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_expressed_and_actual_embeddings(view):
    loss = CrossBatchPrototypeLoss(pooling=PrototypePooling(6, NUM_PROTOTYPES))
    figure = figures.expressed_and_actual_embeddings(view, loss)
    # Classes 0 and 1 are the first half of the batch, 2 and 3 the second.
    expressed, first_half = loss.express(view.embeddings, view.labels, view.histograms)
    assert first_half.tolist() == [True] * 6 + [False] * 6
    embeddings = torch.nn.functional.normalize(view.embeddings.double())
    deviations = torch.cat([half - half.mean(0) for half in embeddings.chunk(2)])
    expected = torch.nn.functional.normalize(expressed) @ torch.nn.functional.normalize(deviations).T
    np.testing.assert_allclose(shown_image(figure), expected, atol=1e-9)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["first half", "second half"]
    thickest = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert set(thickest.get_xdata()) | set(thickest.get_ydata()) >= {5.5}

    one_class = PrototypeView(**{**vars(view), "labels": torch.full((NUM_IMAGES,), 7)})
    with pytest.raises(ValueError, match="two classes or more, got 12 images of class 7"):
        figures.expressed_and_actual_embeddings(one_class, loss)


def test_nothing_is_left_in_pyplot(view):
    rendered(figures.most_used_prototypes(view))
    rendered(figures.prototype_use(view))
    assert matplotlib.pyplot.get_fignums() == []
