import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..checkpoint.atomic_file import atomic_file
from .run_config import RunConfig

#: The metrics of PML's AccuracyCalculator that a run is measured by, with the names that tables give them.
METRICS = {
    "precision_at_1": "precision@1",
    "r_precision": "R-precision",
    "mean_average_precision_at_r": "MAP@R",
}
#: Chooses the best epoch, and decides whether XML helps.
PRIMARY_METRIC = "mean_average_precision_at_r"

#: The classes that a run can be measured on; both are unseen, but the validation classes choose its epoch.
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
        run: the run.
        best_epoch: the first epoch with the highest MAP@R on the validation classes.
        validation: each metric on the validation classes, after the best epoch; between 0 and 1.
        test: the same on the test classes; None if the run was told to leave them alone.
        history: each metric on the validation classes, epoch by epoch.
        cover_radius: the radius, among unit vectors, that greedy k-center reached with the first prototypes;
            None if it chose none.
        seconds: wall time of training and evaluation, since the last start if the run was resumed.
    """

    run: RunConfig
    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float] | None
    history: dict[str, list[float]]
    cover_radius: float | None
    seconds: float

    def on(self, split: Split) -> dict[str, float]:
        """Each metric on the classes of a split.

        Raises:
            ValueError: if the run was told to leave them alone.
        """
        accuracies = self.validation if split == "validation" else self.test
        if accuracies is None:
            raise ValueError(f"the run {self.run.name} was not measured on the test classes")
        return accuracies

    def save(self, path: Path) -> None:
        """Writes the result down, whole or not at all."""
        with atomic_file(path) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2).encode())

    @classmethod
    def load(cls, path: Path) -> "Result":
        """The result that :meth:`save` wrote down."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "run": RunConfig(**fields["run"])})
