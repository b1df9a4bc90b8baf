from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .result import Result, Split
from .run_config import Arm
from .statistics import PairedDifference, paired_t_test


@dataclass(frozen=True)
class PairedResults:
    """The results of one loss and one weight, paired seed by seed.

    Attributes:
        loss: the loss.
        cross_batch_weight: λ.
        plain: the plain results, by ascending seed.
        xml: the XML results of the same seeds.
        control: the control's results of the same seeds; empty if the comparison has none.
    """

    loss: str
    cross_batch_weight: float
    plain: Sequence[Result]
    xml: Sequence[Result]
    control: Sequence[Result] = ()

    def of(self, arm: Arm) -> Sequence[Result]:
        """The results of the arm "plain", "xml" or "control"."""
        return {"plain": self.plain, "xml": self.xml, "control": self.control}[arm]

    def scores(self, arm: Arm, metric: str, split: Split) -> list[float]:
        """One metric of the runs of an arm, in percent, seed by seed."""
        return [100 * result.on(split)[metric] for result in self.of(arm)]

    def t_test(self, metric: str, split: Split, baseline: Arm = "plain") -> PairedDifference:
        """Compares XML with another arm by one metric, in percent."""
        return paired_t_test(self.scores(baseline, metric, split), self.scores("xml", metric, split))


def pair_results(results: Iterable[Result]) -> list[PairedResults]:
    """Pairs each XML result with those of the other arms that have its loss and seed.

    Args:
        results: those of one comparison. Seeds that an arm lacks, as in a comparison that was stopped, are
            left out.

    Returns:
        One for each loss and weight, in the order in which the results come.
    """
    plain: dict[tuple[str, int], Result] = {}
    xml: dict[tuple[str, float], dict[int, Result]] = {}
    control: dict[tuple[str, float], dict[int, Result]] = {}
    for result in results:
        run = result.run
        if run.arm == "plain":
            plain[run.loss, run.seed] = result
        elif run.cross_batch_weight is not None and run.arm != "untouched":
            by_weight = control if run.arm == "control" else xml
            by_weight.setdefault((run.loss, run.cross_batch_weight), {})[run.seed] = result
    paired_results = []
    for (loss, weight), of_seed in xml.items():
        controls = control.get((loss, weight), {})
        seeds = sorted(
            seed for seed in of_seed if (loss, seed) in plain and (not controls or seed in controls)
        )
        if seeds:
            paired_results.append(
                PairedResults(
                    loss,
                    weight,
                    plain=[plain[loss, seed] for seed in seeds],
                    xml=[of_seed[seed] for seed in seeds],
                    control=[controls[seed] for seed in seeds] if controls else (),
                )
            )
    return paired_results
