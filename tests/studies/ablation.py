"""What the formulation of version 0.1 was chosen by: variants on Glyphs, judged by validation classes alone.

Run it with ``python -m tests.studies.ablation``; it goes on where it was stopped. The test classes are
never looked at.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.result import PRIMARY_METRIC
from pml_xbml.comparison.run_all import run_all
from pml_xbml.comparison.run_config import RunConfig
from pml_xbml.comparison.splits import load_splits
from pml_xbml.comparison.statistics import paired_t_test
from tests.studies.ablation_loss import ablation_loss

ITERATIONS = 500
#: As version 0.1 trained; the defaults of a run are others today.
TRAINING = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "iterations": ITERATIONS,
    "iterations_per_epoch": ITERATIONS // 2,
}

#: λ of the runs that change something else: at 0.1 their effects drowned in the spread between seeds.
BASE_WEIGHT = 0.3


@dataclass(frozen=True)
class Variant:
    """A variant of the method: what it changes against λ = 0.3 and the defaults.

    Attributes:
        question: what is asked, in a word or two.
        name: the answer that is tried.
        weight: λ; None for plain training.
        loss: options of :class:`~tests.studies.ablation_loss.AblationLoss`.
        pooling: options of ``PrototypePoolingTrunk``.
        run: other fields of :class:`~pml_xbml.comparison.run_config.RunConfig`.
    """

    question: str
    name: str
    weight: float | None = BASE_WEIGHT
    loss: dict[str, Any] = field(default_factory=dict)
    pooling: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def runs(self, num_seeds: int, first_seed: int = 0, loss: str = RunConfig.loss) -> list[RunConfig]:
        """One run a seed."""
        return [
            RunConfig(
                loss=loss,
                cross_batch_weight=self.weight,
                seed=seed,
                loss_options=self.loss,
                pooling_options={"num_prototypes": 64, **self.pooling},
                **{**TRAINING, **self.run},
            )
            for seed in range(first_seed, first_seed + num_seeds)
        ]

    @property
    def folder(self) -> str:
        """The variant's folder."""
        return f"{self.question} {self.name}".replace(" ", "-").replace("/", "-")


def _weights(name: str, **loss: Any) -> Iterator[Variant]:
    return (Variant(name, f"{weight:g}", weight, loss) for weight in (0.05, 0.1, 0.3, 0.5, 0.9))


def _centered(question: str, answer: str, weights: Sequence[float], **loss: Any) -> Iterator[Variant]:
    options = {"histograms": "centered", **loss}
    return (Variant(f"centered, λ = {weight}{question}", answer, weight, options) for weight in weights)


PLAIN_VARIANT = Variant("plain", "training", None)
BATCH_OF_128 = {"batch_size": 128, "iterations": ITERATIONS // 2, "iterations_per_epoch": ITERATIONS // 4}
PLAIN_BATCH_OF_128 = Variant("plain", "batch 128", None, run=BATCH_OF_128)

VARIANTS: Sequence[Variant] = (
    PLAIN_VARIANT,
    *_weights("(1 − λ)ℓ(Y) + λℓ(Ŷ), λ ="),
    *_weights("ℓ(Y) + λℓ(Ŷ), λ =", total="additive"),
    *(Variant("ridge ε =", f"{ridge:g}", loss={"ridge": ridge}) for ridge in (0.005, 0.5, 5)),
    *(Variant("temperature τ =", f"{tau:g}", pooling={"temperature": tau}) for tau in (0.03, 0.3, 1)),
    *(Variant("prototypes m =", f"{m}", pooling={"num_prototypes": m}) for m in (8, 16, 32, 128)),
    Variant("prototypes start", "at random", run={"prototype_images": 0}),
    *(Variant("histograms", name, loss={"histograms": name}) for name in ("plain", "centered")),
    Variant("prior", "running", loss={"prior": "running"}),
    Variant("Ŷ compared with", "Y", loss={"compared": "embeddings"}),
    Variant("gradient through the fit", "stopped", loss={"fit_gradient": False}),
    Variant("fitted to", "class proxies", loss={"targets": "proxies"}),
    Variant("ℓ(Ŷ) on", "each half apart", loss={"apart": True}),
    Variant("output", "prototypes", pooling={"output": "prototypes"}),
    Variant("λ = 0.3,", "warmed up", loss={"schedule": "warm_up"}),
    Variant("λ = 0.3,", "balanced by gradients", loss={"schedule": "balanced"}),
    PLAIN_BATCH_OF_128,
    Variant("halves of", "64 samples", run=BATCH_OF_128),
    *_weights("centered, (1 − λ)ℓ(Y) + λℓ(Ŷ), λ =", histograms="centered"),
    *_weights("centered, ℓ(Y) + λℓ(Ŷ), λ =", histograms="centered", total="additive"),
    *(
        Variant("centered, ridge ε =", f"{ridge:g}", loss={"histograms": "centered", "ridge": ridge})
        for ridge in (0.005, 0.5, 5)
    ),
    *(
        Variant(f"λ = {weight}, ℓ's proxies", "not trained by ℓ(Ŷ)", weight, loss={"proxies": "kept"})
        for weight in (0.1, 0.3)
    ),
    *_centered(", on Ŷ", "contrastive loss", (0.1, 0.3, 0.5), expressed_by="contrastive"),
    *_centered(", on Ŷ", "all tuples, mined or not", (0.1, 0.3), shares_tuples=False),
    *_centered(",", "balanced by gradients", (0.1, 0.3), schedule="balanced"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all variants and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each variant (default: 4)")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="S",
        help="where the seeds start, so that new ones judge what others picked (default: 0)",
    )
    parser.add_argument(
        "--only",
        type=int,
        nargs="+",
        default=range(len(VARIANTS)),
        metavar="N",
        help="numbers of the variants to train, as the table has them (default: all)",
    )
    parser.add_argument(
        "--loss", choices=list(LOSSES), default=RunConfig.loss, help="ℓ (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    options = parser.parse_args(arguments)
    print(
        "| | | | validation MAP@R | against plain | 95% | seeds won |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    load_splits(RunConfig.dataset, train_classes=RunConfig.train_classes)  # once, for all processes to share
    references = {_plain_partner(VARIANTS[number]).folder for number in options.only}
    scores: dict[str, list[float]] = {}
    for number, variant in enumerate(VARIANTS):
        if number not in options.only and variant.folder not in references:
            continue
        results = run_all(
            variant.runs(options.seeds, options.first_seed, options.loss),
            options.out / variant.folder,
            options.jobs,
            split="validation",
            make_loss=ablation_loss,
        )
        scores[variant.folder] = [100 * result.validation[PRIMARY_METRIC] for result in results]
        plain = scores[_plain_partner(variant).folder]
        print(f"| {number} {_row(variant, scores[variant.folder], plain)}", flush=True)


def _plain_partner(variant: Variant) -> Variant:
    return PLAIN_BATCH_OF_128 if variant.run == BATCH_OF_128 else PLAIN_VARIANT


def _row(variant: Variant, scores: list[float], plain: list[float]) -> str:
    start = f"| {variant.question} | {variant.name} | {np.mean(scores):.2f} |"
    if variant.weight is None:
        return f"{start} | | |"
    paired = paired_t_test(plain, scores)
    relative = 100 / paired.baseline
    return (
        f"{start} {paired.difference * relative:+.1f}% | {paired.low * relative:+.1f}% to "
        f"{paired.high * relative:+.1f}% | {paired.num_better} of {paired.num_seeds} |"
    )


if __name__ == "__main__":
    main()
