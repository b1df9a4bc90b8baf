"""Tables, sentences and files of results."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.atomic_file import atomic_file
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import PLAIN
from .statistics import MIN_SEEDS, PairedDifference, paired_t_test


@dataclass(frozen=True)
class Pairing:
    """The runs of one loss and one weight, paired with the plain runs of the same seeds.

    Attributes:
        loss: the loss.
        cross_batch_weight: λ.
        plain: the plain results, by ascending seed.
        xml: the XML results of the same seeds.
    """

    loss: str
    cross_batch_weight: float
    plain: Sequence[Result]
    xml: Sequence[Result]

    def compare(self, metric: str, split: Split = "test") -> PairedDifference:
        """Compare one metric, in percent."""
        return paired_t_test(*self.scores(metric, split))

    def scores(self, metric: str, split: Split = "test") -> tuple[list[float], list[float]]:
        """One metric of the plain and of the XML runs, in percent, seed by seed."""
        plain, xml = ([100 * result.on(split)[metric] for result in side] for side in (self.plain, self.xml))
        return plain, xml


def pair_results(results: Iterable[Result]) -> list[Pairing]:
    """Pair each XML result with the plain one of the same loss and seed.

    Args:
        results: those of one comparison; an XML result whose plain partner is missing is left out.

    Returns:
        A pairing for each loss and weight, in the order in which the results come.
    """
    plain: dict[tuple[str, int], Result] = {}
    xml: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        if result.run.variant == PLAIN:
            plain[result.run.loss, result.run.seed] = result
        elif result.run.cross_batch_weight is not None:
            xml.setdefault((result.run.loss, result.run.cross_batch_weight), []).append(result)
    pairings = []
    for (loss, weight), partners in xml.items():
        paired = sorted(
            (partner for partner in partners if (loss, partner.run.seed) in plain),
            key=lambda partner: partner.run.seed,
        )
        if paired:
            pairings.append(
                Pairing(loss, weight, [plain[loss, partner.run.seed] for partner in paired], paired)
            )
    return pairings


def format_table(pairing: Pairing, split: Split = "test") -> str:
    """The table of one pairing, in percent.

    Args:
        pairing: plain and XML runs.
        split: the classes that the table is of.

    Returns:
        Lines of text.
    """
    seeds = len(pairing.xml)
    classes = "classes never seen in training" if split == "test" else "the validation classes"
    lines = [
        f"{pairing.loss}, weight {pairing.cross_batch_weight:g}: "
        f"mean of {seeds} seed(s) on {classes}, in percent",
        f"{'':<12}{'plain':>8}{'XML':>8}{'difference':>12}{'95% interval':>18}{'p':>8}{'seeds won':>12}",
    ]
    for metric, name in METRICS.items():
        compared = pairing.compare(metric, split)
        interval = f"[{compared.low:+.2f}, {compared.high:+.2f}]" if seeds > 1 else "–"
        p_value = f"{compared.p_value:.3f}" if seeds > 1 else "–"
        lines.append(
            f"{name:<12}{compared.baseline:>8.2f}{compared.candidate:>8.2f}{compared.difference:>+12.2f}"
            f"{interval:>18}{p_value:>8}{f'{compared.num_better} of {seeds}':>12}"
        )
    return "\n".join(lines)


def conclude(pairings: Sequence[Pairing], split: Split = "test") -> str:
    """Say in words what a user can do with the comparison, by MAP@R.

    Of several weights of a loss the one with the best validation MAP@R speaks, so that the test classes
    choose nothing.

    Args:
        pairings: those of one comparison.
        split: the classes that the sentences are of.

    Returns:
        A sentence for each loss.
    """
    sentences = []
    for loss in dict.fromkeys(pairing.loss for pairing in pairings):
        chosen = max(
            (pairing for pairing in pairings if pairing.loss == loss),
            key=lambda pairing: pairing.compare(PRIMARY_METRIC, "validation").candidate,
        )
        if split == "validation":
            sentences.append(_recommend(chosen))
            continue
        compared = chosen.compare(PRIMARY_METRIC)
        xml = f"{loss}: XML with weight {chosen.cross_batch_weight:g}"
        measured = f"MAP@R on unseen classes changes by {compared.difference:+.2f} points"
        interval = (
            f"{measured} (95% interval {compared.low:+.2f} to {compared.high:+.2f}, "
            f"{compared.num_seeds} seeds)"
        )
        if compared.verdict() == "helps":
            sentences.append(f"{xml} helps: {interval}; turn it on.")
        elif compared.verdict() == "hurts":
            sentences.append(f"{xml} hurts: {interval}; leave it off.")
        elif compared.num_seeds < MIN_SEEDS:
            sentences.append(
                f"{xml} cannot be told from noise with {compared.num_seeds} seed(s): {measured}; "
                f"compare with at least {MIN_SEEDS} seeds before you decide."
            )
        else:
            sentences.append(f"{xml} cannot be told from noise with {compared.num_seeds} seeds: {interval}.")
    return "\n".join(sentences)


def _recommend(pairing: Pairing) -> str:
    compared = pairing.compare(PRIMARY_METRIC, "validation")
    return (
        f"{pairing.loss}: weight {pairing.cross_batch_weight:g} has the best validation MAP@R of XML, "
        f"{compared.difference:+.2f} points from plain. The validation classes have chosen the epochs, and "
        "the weight if there were several, so measure that weight with another --seed, without "
        "--validation-only."
    )


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Write a row a run: what sets it apart, its best epoch, and each metric as a fraction.

    Args:
        results: in the order of the rows.
        path: the file, which is replaced in one step.
    """
    rows = [_row(result) for result in results]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _row(result: Result) -> dict[str, Any]:
    run = result.run
    row = {
        "loss": run.loss,
        "variant": run.variant,
        "cross_batch_weight": run.cross_batch_weight,
        "seed": run.seed,
        **run.loss_options,
        **run.pooling_options,
        "best_epoch": result.best_epoch,
        **{f"validation_{metric}": value for metric, value in result.validation.items()},
    }
    if result.test is not None:
        row.update({f"test_{metric}": value for metric, value in result.test.items()})
    return row
