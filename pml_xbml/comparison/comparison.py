import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.atomic_file import atomic_file
from ..losses import CrossBatchPrototypeLoss
from .control_loss import ITS_OWN_CONTROL
from .data_summary import data_summary
from .figures import plot_differences, plot_learning_curves
from .image_folder import check_images, check_no_own_reference, describe_unusual, open_image_folders
from .paired_results import PairedResults, pair_results
from .python_code import python_code
from .result import Result, Split
from .run_all import run_all
from .run_config import RunConfig, check_same_run
from .splits import NAMED_DATASETS, load_splits
from .tables import footnotes, format_table, write_csv
from .train import RESULT_FILE
from .trainable import check_trainable
from .verdict import format_recommendations, format_verdicts, judge, winning_run

#: λ of a comparison that names none.
DEFAULT_WEIGHT = CrossBatchPrototypeLoss().cross_batch_weight


@dataclass(frozen=True)
class Comparison:
    """A comparison, and where its files are.

    Attributes:
        folder: where everything is.
        results: of every run.
        paired_results: for each loss and weight, the XML runs beside the others.
        split: the classes that it was measured on.
    """

    folder: Path
    results: Sequence[Result] = ()
    paired_results: Sequence[PairedResults] = ()
    split: Split = "test"

    @property
    def untouched(self) -> Result | None:
        """The result of the pretrained network without training, if there is one."""
        return next((result for result in self.results if result.run.arm == "untouched"), None)

    @property
    def winner(self) -> RunConfig | None:
        """The settings that the test classes speak for; None where they were left alone or seeds too few."""
        if self.split == "validation":
            return None
        return winning_run(judge(self.paired_results, self.untouched), self.untouched)

    @property
    def runs_folder(self) -> Path:
        """The folder of the runs' folders."""
        return self.folder / "runs"

    @property
    def report_path(self) -> Path:
        """The tables and the verdict, as they are printed."""
        return self.folder / "report.txt"

    @property
    def results_path(self) -> Path:
        """The table of all runs."""
        return self.folder / "results.csv"

    @property
    def differences_path(self) -> Path:
        """The picture of the paired differences."""
        return self.folder / "differences.png"

    @property
    def curves_path(self) -> Path:
        """The picture of the learning curves."""
        return self.folder / "learning_curves.png"

    def __str__(self) -> str:
        """The tables, the verdict, and the Python lines of what it speaks for."""
        parts = [format_table(paired, self.split, self.untouched) for paired in self.paired_results]
        has_control = any(paired.control for paired in self.paired_results)
        parts.append(footnotes(has_control, has_untouched=self.untouched is not None))
        if self.split == "validation":
            parts.append(format_recommendations(self.paired_results, self.untouched))
        else:
            parts.append(format_verdicts(judge(self.paired_results, self.untouched)))
        winner = self.winner
        if winner is not None:
            loss = "" if winner.arm == "untouched" else f"{winner.loss}, "
            parts += [f"In Python ({loss}{winner.arm}):", python_code(winner)]
        return "\n\n".join(parts)


def plan_runs(
    settings: RunConfig,
    losses: Sequence[str],
    weights: Sequence[float] | None,
    num_seeds: int,
    control: bool = False,
) -> list[RunConfig]:
    """The runs of a comparison: for each loss and seed a plain one, and an XML one for each weight.

    Before them comes the network as it is, without training, where it is a pretrained one.

    Args:
        settings: what all runs share; its seed is the first, its options are those of the XML runs, and its
            loss and weight are replaced.
        losses: names of the table ``LOSSES``.
        weights: the λ's; None takes the default of ``CrossBatchPrototypeLoss``.
        num_seeds: number of seeds, counted up from the first.
        control: add to each XML run one whose second term is the same loss on the embeddings themselves. Of
            contrastive loss that is plain training, so that none is added.

    Returns:
        The runs, seed by seed, so that whoever stops early has compared some seeds and not some losses.

    Raises:
        ValueError: if there is nothing to compare.
    """
    if num_seeds < 1 or not losses or (weights is not None and not weights):
        raise ValueError(
            "losses, weights and num_seeds must give at least one loss, one weight and one seed, got "
            f"{list(losses)}, {weights} and {num_seeds}"
        )
    runs = []
    if settings.is_fine_tuning or ":" in settings.trunk:
        runs.append(_without_options(dataclasses.replace(settings, iterations=0, cross_batch_weight=None)))
    for seed in range(settings.seed, settings.seed + num_seeds):
        for loss in dict.fromkeys(losses):
            shared = dataclasses.replace(settings, loss=loss, seed=seed, cross_batch_weight=None)
            runs.append(_without_options(shared))
            for weight in dict.fromkeys([DEFAULT_WEIGHT] if weights is None else weights):
                xml = dataclasses.replace(settings, loss=loss, seed=seed, cross_batch_weight=weight)
                runs.append(xml)
                if control and loss != ITS_OWN_CONTROL:
                    runs.append(dataclasses.replace(xml, control=True))
    return runs


def _without_options(run: RunConfig) -> RunConfig:
    return dataclasses.replace(run, loss_options={}, pooling_options={})


def compare(
    settings: RunConfig,
    losses: Sequence[str] = ("contrastive",),
    weights: Sequence[float] | None = None,
    num_seeds: int = 5,
    out: str | Path = "runs/compare",
    jobs: int = 1,
    download: bool = False,
    split: Split = "test",
    control: bool = False,
) -> Comparison:
    """Compares plain training with XML: same weights at the start, same batches, another loss.

    Args:
        settings: see :func:`plan_runs`.
        losses: see :func:`plan_runs`.
        weights: see :func:`plan_runs`.
        num_seeds: see :func:`plan_runs`.
        out: gets ``report.txt``, ``results.csv``, the pictures, and the folders of the runs. Started again
            with the same settings, a comparison goes on where it was; whatever ends it, ``results.csv`` has
            the runs that are finished.
        jobs: how many runs to train at once.
        download: let PML download the data set first.
        split: "test" measures on the test classes; "validation" on the validation classes alone, to choose
            settings by.
        control: see :func:`plan_runs`.

    Returns:
        The comparison; its text is the tables and the verdict.

    Raises:
        ValueError: if the settings, or the images of a user's folder, cannot be trained with.
    """
    runs = plan_runs(settings, losses, weights, num_seeds, control)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    _check_can_be_a_folder(Path(out))
    splits = load_splits(
        settings.dataset, settings.root, settings.train_classes, settings.image_size, download
    )
    check_trainable([run for run in runs if run.seed == settings.seed], splits)
    unfinished = Comparison(Path(out), split=split)
    folders = [unfinished.runs_folder / run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        check_same_run(run, folder)
    remarks: list[str] = []
    if settings.dataset not in NAMED_DATASETS:
        parts = open_image_folders(settings.dataset)
        check_images(parts.values())
        check_no_own_reference(parts)
        remarks = describe_unusual(parts.values())
    if control and ITS_OWN_CONTROL in losses:
        remarks.append(f"{ITS_OWN_CONTROL}: its control is plain training, so that no runs are added for it.")
    print("\n".join([data_summary(splits, settings.samples_per_class), *remarks]), flush=True)
    unfinished.folder.mkdir(parents=True, exist_ok=True)
    try:
        results = run_all(runs, unfinished.runs_folder, jobs, split)
    finally:
        paths = [folder / RESULT_FILE for folder in folders]
        write_csv([Result.load(path) for path in paths if path.exists()], unfinished.results_path)
    comparison = dataclasses.replace(unfinished, results=results, paired_results=pair_results(results))
    plot_differences(comparison.paired_results, comparison.differences_path, split)
    plot_learning_curves(comparison.results, comparison.curves_path)
    with atomic_file(comparison.report_path) as file:
        file.write(f"{comparison}\n".encode())
    return comparison


def _check_can_be_a_folder(out: Path) -> None:
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "cannot be written to" if nearest.is_dir() else "is a file"
        raise ValueError(f"out must be a folder to write to, got {str(out)!r}: {str(nearest)!r} {reason}")
