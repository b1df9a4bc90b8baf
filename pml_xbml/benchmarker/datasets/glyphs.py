from collections.abc import Callable
from typing import Any

from PIL import Image

from ... import datasets


class Glyphs(datasets.Glyphs):
    """The plugin's Glyphs, in RGB, with the arguments that powerful-benchmarker gives to every data set.

    Args:
        root: Not used: Glyphs are drawn.
        transform: Takes an RGB PIL image.
        download: Not used.
        **options: Those of :class:`pml_xbml.datasets.Glyphs`.
    """

    def __init__(
        self,
        root: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(transform=transform, **options)

    def __getitem__(self, idx: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[idx]).convert("RGB")
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[idx]
