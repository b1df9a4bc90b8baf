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
from ..comparison import Comparison, RunConfig
from ..comparison.result import Split


def default_jobs() -> int:
    """Two processes fit into 2 GB of memory; on a GPU runs would only wait for each other."""
    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def demo(options: argparse.Namespace) -> int:
    """The smallest comparison: glyphs, contrastive loss, all defaults."""
    return _compare(_settings(options), options, ["contrastive"], None)


def compare(options: argparse.Namespace) -> int:
    """The comparison that the options ask for."""
    if "copies" in options and "freeze" not in options:
        raise ValueError(
            "copies must come with freeze, whose activations they are computed for, "
            f"got {options.copies} without it"
        )
    depending: dict[str, Any] = {}
    if options.dataset != "glyphs" and "train_classes" not in options:
        depending["train_classes"] = None
    if options.num_prototypes is not None:
        depending["pooling_options"] = {"num_prototypes": options.num_prototypes}
    settings = dataclasses.replace(_settings(options), **depending)
    return _compare(
        settings,
        options,
        options.losses,
        options.cross_batch_weights,
        options.download,
        split="validation" if options.validation_only else "test",
        control=options.with_control,
    )


def look(options: argparse.Namespace) -> int:
    """Pictures of what a run's prototypes respond to."""
    for picture in comparison.look(options.run_dir, images=options.images):
        print(picture)
    return 0


def _settings(options: argparse.Namespace) -> RunConfig:
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(RunConfig)
        if field.name in options
    }
    iterations = given.get("iterations", RunConfig.iterations)
    return RunConfig(**{"iterations_per_epoch": min(RunConfig.iterations_per_epoch, iterations), **given})


def _compare(
    settings: RunConfig,
    options: argparse.Namespace,
    losses: Sequence[str],
    weights: Sequence[float] | None,
    download: bool = False,
    split: Split = "test",
    control: bool = False,
) -> int:
    print(f"Tables, pictures, logs and models go to {options.out}", flush=True)
    started = time.monotonic()
    finished = comparison.compare(
        settings, losses, weights, options.seeds, options.out, options.jobs, download, split, control
    )
    print(f"\n{finished}\n\n{_files(finished)}\n\nDone in {time.monotonic() - started:.0f} seconds.")
    return 0


def _files(finished: Comparison) -> str:
    return "\n".join(
        [
            f"this text          {finished.report_path}",
            f"every run          {finished.results_path}",
            f"differences        {finished.differences_path}",
            f"learning curves    {finished.curves_path}",
            f"logs and models    {finished.runs_folder}",
            f"prototypes         {finished.runs_folder / '*' / 'pictures'}",
            "all curves         " + shlex.join(["tensorboard", "--logdir", str(finished.runs_folder)]),
        ]
    )
