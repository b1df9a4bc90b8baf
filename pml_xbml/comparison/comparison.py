import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures import plot_differences, plot_learning_curves
from .image_folder import check_images, open_image_folder
from .loss_table import LOSSES
from .report import (
    Pairing,
    conclude,
    format_table,
    pair_results,
    write_csv,
)
from .result import Result, Split
from .run_all import run_all
from .run_config import PLAIN, XML, Run, check_same_run
from .splits import NAMED_DATASETS, load_splits
from .train import RESULT_FILE, RUN_FILE


@dataclass(frozen=True)
class Comparison:
    """A comparison, and where its files are.

    Attributes:
        folder: where everything is.
        results: of every run.
        pairings: for each loss and weight, the XML runs beside the plain ones.
        split: the classes that it was measured on.
    """

    folder: Path
    results: Sequence[Result] = ()
    pairings: Sequence[Pairing] = ()
    split: Split = "test"

    @property
    def runs_folder(self) -> Path:
        """The folder of the runs' folders."""
        return self.folder / "runs"

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
        """The tables, and what follows from them."""
        tables = [format_table(pairing, self.split) for pairing in self.pairings]
        return "\n\n".join([*tables, conclude(self.pairings, self.split)])


def plan_runs(
    settings: Run, losses: Sequence[str], weights: Sequence[float] | None, num_seeds: int
) -> list[Run]:
    """The runs of a comparison: for each loss and seed a plain one, and an XML one for each weight.

    Args:
        settings: what all runs share; its seed is the first, its options are those of the XML runs, beside
            what the table ``LOSSES`` says of their loss, from scratch or with pretrained weights, and its
            loss, variant and weight are replaced.
        losses: names of the table ``LOSSES``.
        weights: the λ's; None takes each loss's own of the table.
        num_seeds: number of seeds, counted up from the first.

    Returns:
        The runs, seed by seed, so that whoever stops early has compared some seeds and not some losses.

    Raises:
        ValueError: if there is nothing to compare.
    """
    if num_seeds < 1 or not losses or (weights is not None and not weights):
        raise ValueError(
            f"a comparison needs at least one loss, one weight and one seed, got losses={list(losses)}, "
            f"weights={weights}, seeds={num_seeds}"
        )
    runs = []
    for seed in range(settings.seed, settings.seed + num_seeds):
        for loss in dict.fromkeys(losses):
            shared = dataclasses.replace(
                settings, loss=loss, seed=seed, variant=PLAIN, cross_batch_weight=None
            )
            runs.append(dataclasses.replace(shared, loss_options={}, pooling_options={}))
            chosen = LOSSES[loss] if settings.weights is None else LOSSES[loss].for_pretrained_weights()
            options = {**chosen.cross_batch_options, **settings.loss_options}
            runs += [
                dataclasses.replace(shared, variant=XML, cross_batch_weight=weight, loss_options=options)
                for weight in dict.fromkeys([chosen.cross_batch_weight] if weights is None else weights)
            ]
    return runs


def compare(
    settings: Run,
    losses: Sequence[str] = ("contrastive",),
    weights: Sequence[float] | None = None,
    num_seeds: int = 5,
    out: str | Path = "runs/compare",
    jobs: int = 1,
    download: bool = False,
    evaluate_test: bool = True,
) -> Comparison:
    """Compare plain training with XML: same weights at the start, same batches, another loss.

    Args:
        settings: see :func:`plan_runs`.
        losses: see :func:`plan_runs`.
        weights: see :func:`plan_runs`.
        num_seeds: see :func:`plan_runs`.
        out: gets ``results.csv``, the pictures, and the folders of the runs. Started again with the same
            settings, a comparison goes on where it was; whatever ends it, ``results.csv`` has the runs that
            are finished.
        jobs: how many runs to train at once.
        download: let PML download the data set first.
        evaluate_test: measure on the test classes; without, on the validation classes alone, to choose
            settings by.

    Returns:
        The comparison; its text is the tables and the conclusion.

    Raises:
        ValueError: if the settings, or the images of a user's folder, cannot be trained with.
    """
    runs = plan_runs(settings, losses, weights, num_seeds)
    if settings.dataset not in NAMED_DATASETS:
        check_images(open_image_folder(settings.dataset))
    load_splits(settings.dataset, settings.root, settings.train_classes, settings.image_size, download)
    split: Split = "test" if evaluate_test else "validation"
    pending = Comparison(Path(out), split=split)
    folders = [pending.runs_folder / run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        check_same_run(run, folder / RUN_FILE)
    pending.folder.mkdir(parents=True, exist_ok=True)
    try:
        results = run_all(runs, pending.runs_folder, jobs, evaluate_test)
    finally:
        paths = [folder / RESULT_FILE for folder in folders]
        write_csv([Result.load(path) for path in paths if path.exists()], pending.results_path)
    compared = dataclasses.replace(pending, results=results, pairings=pair_results(results))
    plot_differences(compared.pairings, compared.differences_path, split)
    plot_learning_curves(compared.results, compared.curves_path)
    return compared
