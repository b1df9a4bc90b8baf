import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .loss_table import LOSSES

PLAIN = "plain"
XML = "xml"
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Run:
    """One training run: everything that its result depends on.

    Args:
        loss: a name of the table ``LOSSES``.
        variant: "plain", the loss by itself on the unwrapped trunk, or "xml", the cross-batch loss around it.
        cross_batch_weight: λ of an XML run; None for a plain one.
        seed: of weights, proxies and batches. Runs of one seed that differ in their variant alone start from
            the same weights and see the same batches in the same order.
        dataset, root, train_classes, image_size: see :func:`~pml_xbml.comparison.splits.load_splits`.
        trunk, weights: see :func:`~pml_xbml.comparison.networks.build_network`.
        embedding_size: size of the embedding that a linear layer makes of the trunk's output.
        batch_size: both halves together.
        samples_per_class: images of each class in a batch.
        iterations: batches in all.
        iterations_per_epoch: batches between two validations, between which the best is chosen.
        learning_rate: Adam's, of the trunk without its prototypes.
        prototypes_learning_rate: Adam's, of the prototypes. At the rate of a pretrained trunk they would stay
            where they started.
        embedder_learning_rate: Adam's, of the linear layer.
        schedule: "cosine" (down to zero at the end) or "constant".
        loss_options: more arguments of ``CrossBatchPrototypeLoss``, such as ``{"ridge": 0.5}``; an
            ``expressed_loss`` by its name in the table ``LOSSES``.
        pooling_options: more arguments of ``PrototypePoolingTrunk``, such as ``{"num_prototypes": 128}``.
        dataloader_num_workers: of PML's trainer and tester.
        prototype_images: training images that the prototypes are chosen from by greedy k-center; 0 leaves
            them as they were drawn.

    Raises:
        ValueError: if a field has a value that cannot be trained with.
    """

    loss: str = "contrastive"
    variant: str = PLAIN
    cross_batch_weight: float | None = None
    seed: int = 0
    dataset: str = "glyphs"
    root: str | None = None
    train_classes: int | None = 64
    image_size: int | None = None
    trunk: str = "small"
    weights: str | None = None
    embedding_size: int = 128
    batch_size: int = 32
    samples_per_class: int = 4
    iterations: int = 800
    iterations_per_epoch: int = 100
    learning_rate: float = 1e-3
    prototypes_learning_rate: float = 1e-3
    embedder_learning_rate: float = 1e-3
    schedule: str = "cosine"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    pooling_options: Mapping[str, Any] = field(default_factory=dict)
    prototype_images: int = 256
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if (self.variant == PLAIN) != (self.cross_batch_weight is None):
            raise ValueError(
                "cross_batch_weight belongs to XML runs alone: "
                f"got variant={self.variant!r} with cross_batch_weight={self.cross_batch_weight}"
            )
        if self.cross_batch_weight is not None and not 0 <= self.cross_batch_weight <= 1:
            raise ValueError(f"cross_batch_weight must lie between 0 and 1, got {self.cross_batch_weight}")
        if (
            self.iterations_per_epoch < 1
            or self.iterations < 1
            or self.iterations % self.iterations_per_epoch
        ):
            raise ValueError(
                "iterations must be a positive multiple of iterations_per_epoch, "
                f"got {self.iterations} and {self.iterations_per_epoch}"
            )

    @property
    def epochs(self) -> int:
        """How often the run is validated."""
        return self.iterations // self.iterations_per_epoch

    @property
    def name(self) -> str:
        """The name of the run's folder: what differs between the runs of a comparison."""
        parts = [self.loss, self.variant]
        if self.cross_batch_weight is not None:
            parts.append(f"{self.cross_batch_weight:g}")
        parts += [
            f"{key}-{value}" for key, value in sorted({**self.loss_options, **self.pooling_options}.items())
        ]
        return "_".join([*parts, f"seed-{self.seed}"])

    def to_json(self) -> str:
        """All fields as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """The run that :meth:`to_json` wrote down."""
        return cls(**json.loads(text))


def check_same_run(run: Run, path: Path) -> None:
    """Refuse to go on with a folder in which another run was recorded.

    Args:
        run: the run that is asked for.
        path: the JSON file of the run that was recorded, if there was one.

    Raises:
        ValueError: if they differ; the message names the fields.
    """
    if not path.exists():
        return
    asked, recorded = json.loads(run.to_json()), json.loads(path.read_text())
    differing = [
        f"{name}={recorded.get(name)!r} (now {asked.get(name)!r})"
        for name in {**recorded, **asked}
        if recorded.get(name) != asked.get(name)
    ]
    if differing:
        raise ValueError(
            f"out: {str(path.parent)!r} holds a run with other settings: {', '.join(differing)}; "
            "give another folder, or the settings that it was started with"
        )
