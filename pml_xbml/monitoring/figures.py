"""Pictures of what prototypes are, where they are found and what they are good for.

Each function takes a :class:`~pml_xbml.monitoring.prototype_view.PrototypeView` and gives a matplotlib
figure that belongs to no window and to no global state. A line at its foot says how to read it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn.functional import interpolate

from .. import functional
from ..losses import CrossBatchPrototypeLoss
from ..trunks._statistics import perplexity
from .prototype_view import PrototypeView

FloatArray = npt.NDArray[np.float32]

# Small images are enlarged to at least so many pixels, so that an overlay has room.
_SMALLEST_SIDE = 96
_GAP = 6
# Of the lines at the foot of a figure, in points, and what follows from it.
_EXPLANATION_SIZE = 8.5
_CHARACTERS_PER_INCH = 14.5
_INCHES_PER_LINE = 0.15
_INCHES_PER_LEGEND_ROW = 0.19
_HARD_COLORS = matplotlib.colormaps["tab10"](np.arange(10))[:, :3]
_OTHER_COLOR = (0.82, 0.82, 0.82)


def most_used_prototypes(view: PrototypeView, num_prototypes: int = 8, num_images: int = 8) -> Figure:
    """One row a prototype: the images that use it most, with its assignment map laid over them.

    Args:
        view: what to show.
        num_prototypes: how many rows at most, the most used prototypes first.
        num_images: how many images at most in a row, the one with the greatest share first.

    Returns:
        The figure. The overlay shows the prototype's share in each local feature, from none to the greatest
        of the row, which the label on the left gives.
    """
    shown = view.use.argsort(descending=True)[:num_prototypes].tolist()
    rows, labels = [], []
    for prototype in shown:
        users = view.histograms[:, prototype].argsort(descending=True)[:num_images]
        maps = view.assignments[users, prototype]
        peak = maps.max()
        images = _enlarged(view.images[users])
        rows.append(_overlaid(images, resized_maps(maps / peak, images.shape[-2:])))
        labels.append(
            f"prototype {prototype}\nmean share {view.use[prototype]:.1%}\ngreatest share {peak:.0%}"
        )
    mosaic = _mosaic(rows)
    figure, axes = _mosaic_figure(mosaic, len(rows), side_margin=2.6)
    _label_rows(axes, mosaic, labels)
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), "inferno"), ax=axes, fraction=0.03, pad=0.01)
    scale.set_ticks([0, 1], labels=["0", "row's\ngreatest\nshare"], fontsize="small")
    figure.suptitle("The most used prototypes, and the images that use them most")
    _explain(
        figure,
        "A row is a prototype. Color shows its share in each place of an image. Good: a row marks the same "
        "kind of part in all its images. Rows that mark the empty background are usual: most places are "
        "background, and prototypes of it come first. Bad: no row marks parts of the objects.",
    )
    return figure


def hard_assignment_maps(view: PrototypeView, num_images: int = 12, images_per_row: int = 4) -> Figure:
    """Images, and beside each the prototype that every local feature matches best, in colors.

    Args:
        view: what to show.
        num_images: how many images at most, spread evenly over the view.
        images_per_row: how many images are side by side.

    Returns:
        The figure. The prototypes that are found most often have colors of their own, the others are gray.
    """
    chosen = np.unique(np.linspace(0, len(view.images) - 1, num_images).round().astype(int))
    hard = view.hard_assignments[chosen]
    counts = torch.bincount(hard.flatten(), minlength=len(view.prototypes))
    ranked = [index for index in counts.argsort(descending=True).tolist() if counts[index] > 0]
    colored = ranked[: len(_HARD_COLORS)]
    palette = torch.tensor(_OTHER_COLOR).repeat(len(view.prototypes), 1)
    palette[colored] = torch.as_tensor(_HARD_COLORS[: len(colored)], dtype=palette.dtype)

    images = _enlarged(view.images[chosen])
    maps = interpolate(palette[hard].permute(0, 3, 1, 2), images.shape[-2:], mode="nearest-exact")
    tiles = torch.stack([images, maps], dim=1).flatten(0, 1)
    mosaic = _mosaic(list(tiles.split(2 * images_per_row)))
    legend = [
        Patch(facecolor=color, label=f"prototype {index}")
        for index, color in zip(colored, _HARD_COLORS, strict=False)
    ]
    if len(ranked) > len(colored):
        legend.append(Patch(facecolor=_OTHER_COLOR, label=f"{len(ranked) - len(colored)} others"))
    figure, _ = _mosaic_figure(mosaic, -(-len(chosen) // images_per_row), side_margin=1.4)
    # The legend stands in the middle of the figure, above the lines at the foot.
    figure.set_figheight(max(figure.get_figheight(), _INCHES_PER_LEGEND_ROW * (len(legend) + 4)))
    figure.suptitle("The prototype that each local feature matches best")
    figure.legend(handles=legend, loc="outside right center", fontsize="small", frameon=False)
    _explain(
        figure,
        "Beside each image: in each place, the color of the prototype that matches best. Good: the same part "
        "has the same color in all images, and images of different classes differ in their colors. Bad: one "
        "color nearly everywhere, or no pattern.",
    )
    return figure


def prototype_use(view: PrototypeView) -> Figure:
    """The mean histogram, sorted, and how often each prototype is the best match of a local feature.

    Args:
        view: what to show.

    Returns:
        The figure.
    """
    use, order = view.use.sort(descending=True)
    best = torch.bincount(view.hard_assignments.flatten(), minlength=len(use)) / view.hard_assignments.numel()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(use))
    axes.bar(places, 100 * best[order].numpy(), width=1, color="#c6dbef", label="is the best match")
    axes.step(places, 100 * use.numpy(), where="mid", color="#08519c", linewidth=2, label="mean histogram")
    axes.axhline(100 / len(use), color="black", linewidth=0.8, linestyle="--", label="used equally")
    axes.set_xlim(-0.5, len(use) - 0.5)
    axes.set_xlabel("prototypes, the most used first")
    axes.set_ylabel("share of local features, %")
    axes.set_title(f"Prototype use: perplexity {perplexity(view.use):.1f} of {len(use)}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _explain(
        figure,
        "Good: the line falls slowly and most bars are above zero, so that many prototypes are in use "
        "(perplexity is their number if all were used equally). Bad: a few tall bars, and none at the right.",
    )
    return figure


def prototype_similarities(view: PrototypeView) -> Figure:
    """The cosines between the prototypes, similar ones side by side.

    Args:
        view: what to show.

    Returns:
        The figure.
    """
    directions = functional.l2_normalize(view.prototypes.double())
    cosines = (directions @ directions.T).clamp(-1, 1).numpy()
    order = _neighbors_in_line(cosines)
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines[order][:, order], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(image, label="cosine")
    places = np.unique(np.linspace(0, len(order) - 1, 16).round().astype(int))
    axes.set_xticks(places, [order[place] for place in places], fontsize="small")
    axes.set_yticks(places, [order[place] for place in places], fontsize="small")
    axes.set_xlabel("prototype")
    axes.set_ylabel("prototype")
    axes.set_title("Cosines between prototypes")
    _explain(
        figure,
        "Good: dark red on the diagonal alone, so that the prototypes differ; light red elsewhere is usual "
        "behind a ReLU. Bad: dark blocks off the diagonal, which are prototypes that do the work of one.",
    )
    return figure


def expressed_and_actual_embeddings(view: PrototypeView, loss: CrossBatchPrototypeLoss) -> Figure:
    """The cosines between each sample expressed by the other half's prototypes and each actual embedding.

    The view's images are the batch, and the loss expresses it: deviations from the mean of the half whose
    prototypes they are. The actual embeddings are deviations from their own half's mean.

    Args:
        view: what to show, of two classes or more.
        loss: the loss; its ``express`` is asked for the embeddings.

    Returns:
        The figure. The better the prototypes transfer, the redder the blocks on the diagonal, each a class,
        against the rest.

    Raises:
        ValueError: if all images are of one class.
    """
    if len(view.labels.unique()) < 2:
        raise ValueError(
            f"view must be of two classes or more, got {len(view.labels)} images of class "
            f"{view.labels[0].item()}: two halves without a class in common need two classes"
        )
    expressed, first_half = loss.express(view.embeddings, view.labels, view.histograms)
    order = np.lexsort((view.labels.numpy(), ~first_half.numpy())).tolist()
    labels, first_half = view.labels[order], first_half[order]
    embeddings = functional.l2_normalize(view.embeddings[order].double())
    # What is expressed are deviations from a half's mean, so these are too.
    means = torch.stack([embeddings[~first_half].mean(0), embeddings[first_half].mean(0)])
    deviations = functional.l2_normalize(embeddings - means[first_half.long()])
    cosines = functional.l2_normalize(expressed[order].double()) @ deviations.T

    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(image, label="cosine")
    num_first = int(first_half.sum())
    class_starts = 1 + torch.nonzero(labels[1:] != labels[:-1]).flatten()
    for draw_line in (axes.axhline, axes.axvline):
        for start in class_starts.tolist():
            draw_line(start - 0.5, color="black", linewidth=0.4, alpha=0.6)
        draw_line(num_first - 0.5, color="black", linewidth=1.8)
    middles = [num_first / 2 - 0.5, (num_first + len(labels)) / 2 - 0.5]
    axes.set_xticks(middles, ["first half", "second half"])
    axes.set_yticks(middles, ["first half", "second half"], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel("actual embeddings, less their half's mean")
    axes.set_ylabel("expressed by the other half's prototypes")
    axes.set_title("Expressed against actual embeddings")
    _explain(
        figure,
        "Thin lines part the classes, thick lines the halves. Good: red squares on the diagonal, so that a "
        "sample expressed by classes it does not belong to is still closest to its own class. Bad: whole "
        "columns of one color (every sample is expressed alike), or pale all over.",
    )
    return figure


def resized_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps brought to the size of the images, each value staying in the middle of what it was taken from.

    Args:
        maps: (B, h, w).
        size: H and W.

    Returns:
        (B, H, W).
    """
    return interpolate(maps.unsqueeze(1), tuple(size), mode="bilinear", align_corners=False).squeeze(1)


def _enlarged(images: Tensor) -> Tensor:
    factor = max(1, -(-_SMALLEST_SIDE // min(images.shape[-2:])))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _overlaid(images: Tensor, maps: Tensor) -> Tensor:
    """Images in gray, with the maps (B, H, W), in [0, 1], over them: what is 0 lets the gray through."""
    gray = images.mean(1, keepdim=True).mul(0.7).expand(-1, 3, -1, -1)
    heat = torch.from_numpy(matplotlib.colormaps["inferno"](maps.numpy())[..., :3]).permute(0, 3, 1, 2)
    opacity = maps.unsqueeze(1).sqrt() * 0.75
    return (gray * (1 - opacity) + heat * opacity).float()


def _mosaic(rows: Sequence[Tensor]) -> FloatArray:
    """Rows of images (B, 3, H, W) as one white-ruled image (rows · (H + gap), B · (W + gap), 3)."""
    length = max(len(row) for row in rows)
    padded = [
        torch.nn.functional.pad(row, (0, _GAP, 0, _GAP, 0, 0, 0, length - len(row)), value=1.0)
        for row in rows
    ]
    grid = torch.stack(padded).permute(0, 3, 1, 4, 2)
    return grid.reshape(grid.shape[0] * grid.shape[1], -1, 3).clamp(0, 1).numpy()[:-_GAP, :-_GAP]


def _mosaic_figure(mosaic: FloatArray, num_rows: int, side_margin: float) -> tuple[Figure, Axes]:
    inches_per_pixel = num_rows * 1.05 / mosaic.shape[0]
    size = (mosaic.shape[1] * inches_per_pixel + side_margin, mosaic.shape[0] * inches_per_pixel + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure, axes


def _explain(figure: Figure, text: str) -> None:
    """Puts how to read a figure at its foot, in lines that fit its width."""
    characters = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = textwrap.wrap(text, characters)
    figure.set_figheight(figure.get_figheight() + _INCHES_PER_LINE * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=_EXPLANATION_SIZE, color="0.25")


def _label_rows(axes: Axes, mosaic: FloatArray, labels: Sequence[str]) -> None:
    height = (mosaic.shape[0] + _GAP) / len(labels)
    axes.set_yticks([(row + 0.5) * height - _GAP / 2 for row in range(len(labels))], labels, fontsize="small")
    axes.tick_params(length=0)


def _neighbors_in_line(cosines: npt.NDArray[np.float64]) -> list[int]:
    """An order of the rows that puts similar ones side by side."""
    if len(cosines) < 3:
        return list(range(len(cosines)))
    distances = squareform(1 - cosines, checks=False)
    tree = hierarchy.linkage(distances, method="average", optimal_ordering=True)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]
