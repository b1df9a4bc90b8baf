"""What the subcommands do with their options; each returns the exit status."""

import argparse
import dataclasses
import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import torch

from .. import comparison
from ..comparison import Comparison, Run

#: Says that ℓ itself is applied to expressed embeddings.
SAME_LOSS = "same"
#: Of the trunk, when it starts from pretrained weights.
PRETRAINED_LEARNING_RATE = 1e-5


def default_jobs() -> int:
    """Two processes fit into 2 GB of memory; on a GPU runs would only wait for each other."""
    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def demo(options: argparse.Namespace) -> int:
    """The smallest comparison: glyphs, contrastive loss, at the weight that the table has for it."""
    return _compare(_settings(options), options, ["contrastive"], None)


def compare(options: argparse.Namespace) -> int:
    """The comparison that the options ask for."""
    depending: dict[str, Any] = {}
    if options.dataset != "glyphs" and "train_classes" not in options:
        depending["train_classes"] = None
    if "weights" in options and "learning_rate" not in options:
        depending["learning_rate"] = PRETRAINED_LEARNING_RATE
    if options.num_prototypes is not None:
        if options.num_prototypes < 1:
            raise ValueError(f"num_prototypes must be at least 1, got {options.num_prototypes}")
        depending["pooling_options"] = {"num_prototypes": options.num_prototypes}
    if options.center_histograms is not None:
        depending["loss_options"] = {"center_histograms": options.center_histograms}
    if options.expressed_loss is not None:
        chosen = None if options.expressed_loss == SAME_LOSS else options.expressed_loss
        depending.setdefault("loss_options", {})["expressed_loss"] = chosen
    settings = dataclasses.replace(_settings(options), **depending)
    return _compare(
        settings,
        options,
        options.losses,
        options.cross_batch_weights,
        options.download,
        evaluate_test=not options.validation_only,
    )


def look(options: argparse.Namespace) -> int:
    """Pictures of what a run's prototypes respond to."""
    for picture in comparison.look(options.run_dir, images=options.images):
        print(picture)
    return 0


def _settings(options: argparse.Namespace) -> Run:
    given = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(Run) if field.name in options
    }
    iterations = given.get("iterations", Run.iterations)
    return Run(**{"iterations_per_epoch": min(Run.iterations_per_epoch, iterations), **given})


def _compare(
    settings: Run,
    options: argparse.Namespace,
    losses: Sequence[str],
    weights: Sequence[float] | None,
    download: bool = False,
    evaluate_test: bool = True,
) -> int:
    print(f"Logs, models and results go to {options.out}", flush=True)
    started = time.monotonic()
    compared = comparison.compare(
        settings, losses, weights, options.seeds, options.out, options.jobs, download, evaluate_test
    )
    print(f"\n{compared}\n\n{_where_to_look(compared)}\n\nDone in {time.monotonic() - started:.0f} seconds.")
    return 0


def _where_to_look(compared: Comparison) -> str:
    return "\n".join(
        [
            f"every run          {compared.results_path}",
            f"differences        {compared.differences_path}",
            f"learning curves    {compared.curves_path}",
            f"logs and models    {compared.runs_folder}",
            f"prototypes         {compared.runs_folder / '*' / 'pictures'}",
            "all curves         " + shlex.join(["tensorboard", "--logdir", str(compared.runs_folder)]),
        ]
    )
