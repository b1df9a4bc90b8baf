import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .loss_table import LOSSES

#: What a run trains with, see :attr:`RunConfig.arm`.
Arm = Literal["untouched", "plain", "control", "xml"]
SCHEDULES = ("cosine", "constant")
RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunConfig:
    """One training run: everything that its result depends on.

    Runs of one seed that differ in their loss alone start from the same weights and see the same batches in
    the same order.

    Args:
        loss: a name of the table ``LOSSES``.
        cross_batch_weight: λ, the weight of the second term; None for the loss by itself on the plain trunk.
        control: the second term is its loss on the embeddings themselves, Y in place of Ŷ. Tells what of a
            gain is due to the second loss rather than to the cross-batch expression.
        seed: of weights, proxies and batches.
        dataset, root, train_classes, image_size: see :func:`~pml_xbml.comparison.splits.load_splits`.
        trunk, pretrained: see :func:`~pml_xbml.comparison.networks.build_network`.
        freeze: name of the module of the trunk up to which (included) it is frozen: in evaluation mode and
            without gradients. Its activations are computed once and shared by the runs of a comparison.
            "auto" freezes roughly the first two thirds of the trunk's cost; None trains all of it.
        copies: augmented versions of each training image that frozen stages are computed for.
        freeze_norms: keep the normalization layers of what is trained in evaluation mode, as is usual in
            fine-tuning with small batches. None is True with ``pretrained`` or ``freeze``, else False.
        embedding_size: size of the embedding that a linear layer makes of the trunk's output.
        batch_size: both halves together.
        samples_per_class: images of each class in a batch.
        iterations: batches at most; 0 evaluates the trunk's pooled features as they come, without training.
        iterations_per_epoch: batches between two validations, between which the best is chosen.
        patience: validations in a row without a new best after which the run stops; None never stops it.
        learning_rate: Adam's, of the trunk without its prototypes. None is 1e-4 with ``pretrained`` or
            ``freeze``, else 3e-3: what validation classes chose for plain training, see tests/studies.
        prototypes_learning_rate: Adam's, of the prototypes. At the rate of a pretrained trunk they would stay
            where they started.
        embedder_learning_rate: Adam's, of the linear layer.
        schedule: "cosine" (down to zero after ``iterations``) or "constant".
        loss_options: more arguments of ``CrossBatchPrototypeLoss``, such as ``{"ridge": 0.5}``.
        pooling_options: more arguments of ``PrototypePoolingTrunk``, such as ``{"num_prototypes": 128}``.
        dataloader_num_workers: of PML's trainer and tester.
        prototype_images: training images that the prototypes are chosen from by greedy k-center; 0 leaves
            them as they were drawn.

    Raises:
        ValueError: if a field has a value that cannot be trained with.
    """

    loss: str = "contrastive"
    cross_batch_weight: float | None = None
    control: bool = False
    seed: int = 0
    dataset: str = "glyphs"
    root: str | None = None
    train_classes: int | None = 64
    image_size: int | None = None
    trunk: str = "small"
    pretrained: str | None = None
    freeze: str | None = None
    copies: int = 6
    freeze_norms: bool | None = None
    embedding_size: int = 128
    batch_size: int = 64
    samples_per_class: int = 4
    iterations: int = 400
    iterations_per_epoch: int = 50
    patience: int | None = None
    learning_rate: float | None = None
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
        if self.cross_batch_weight is not None and not 0 <= self.cross_batch_weight <= 1:
            raise ValueError(f"cross_batch_weight must lie between 0 and 1, got {self.cross_batch_weight}")
        if self.control and self.cross_batch_weight is None:
            raise ValueError(
                "control must come with a cross_batch_weight, the weight of its second loss, got None"
            )
        per_epoch = self.iterations_per_epoch
        if self.iterations < 0 or per_epoch < 1 or self.iterations % per_epoch:
            raise ValueError(
                "iterations must be a multiple of iterations_per_epoch, or 0 for no training, "
                f"got {self.iterations} and {per_epoch}"
            )
        for name in ("copies", "patience"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")

    @property
    def arm(self) -> Arm:
        """ "untouched" (no training), "plain" (the loss by itself), "control" or "xml"."""
        if self.iterations == 0:
            return "untouched"
        if self.cross_batch_weight is None:
            return "plain"
        return "control" if self.control else "xml"

    @property
    def is_fine_tuning(self) -> bool:
        """Whether training starts from weights that are to be kept near where they are."""
        return self.pretrained is not None or self.freeze is not None

    @property
    def trunk_learning_rate(self) -> float:
        """``learning_rate``, with its default filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.is_fine_tuning else 3e-3

    @property
    def freezes_norms(self) -> bool:
        """``freeze_norms``, with its default filled in."""
        return self.is_fine_tuning if self.freeze_norms is None else self.freeze_norms

    @property
    def epochs(self) -> int:
        """How often the run is validated, at most."""
        return self.iterations // self.iterations_per_epoch

    @property
    def name(self) -> str:
        """The name of the run's folder: what differs between the runs of a comparison."""
        if self.arm == "untouched":
            return f"untouched_seed-{self.seed}"
        parts = [self.loss, self.arm]
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
    def from_json(cls, text: str) -> "RunConfig":
        """The run that :meth:`to_json` wrote down."""
        return cls(**json.loads(text))


def check_same_run(config: RunConfig, folder: Path) -> None:
    """Refuses to go on with a folder in which another run was recorded.

    Args:
        config: the run that is asked for.
        folder: the run's folder, which need not be there yet.

    Raises:
        ValueError: if they differ; the message names the fields.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return
    asked, recorded = json.loads(config.to_json()), json.loads(path.read_text())
    differing = [
        f"{name}={recorded.get(name)!r} (now {asked.get(name)!r})"
        for name in {**recorded, **asked}
        if recorded.get(name) != asked.get(name)
    ]
    if differing:
        raise ValueError(
            f"out must be a new folder, or one of the same settings, got {str(folder)!r}, which holds a run "
            f"with {', '.join(differing)}"
        )
