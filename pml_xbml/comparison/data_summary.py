from collections import Counter
from typing import Any

from .splits import Splits


def data_summary(splits: Splits[Any], samples_per_class: int) -> str:
    """What will be trained and measured on, in one sentence or two.

    Args:
        splits: the data.
        samples_per_class: of a batch.

    Returns:
        The numbers of classes and images of each split, and what the sampler does with classes that have
        fewer images than a batch takes.
    """
    parts = {"training": splits.train, "validation": splits.val, **splits.test}
    text = "; ".join(
        f"{name}: {len(part.classes)} classes, {len(part.labels)} images" for name, part in parts.items()
    )
    side = splits.train[0][0].shape[-1]
    sizes = Counter(splits.train.labels).values()
    num_small = sum(size < samples_per_class for size in sizes)
    small = (
        f" {num_small} of {len(sizes)} training classes have fewer images than a batch takes of a class, "
        f"{samples_per_class}: the sampler repeats their images within the batch."
        if num_small
        else ""
    )
    return f"{text}. Images of {side} pixels.{small}"
