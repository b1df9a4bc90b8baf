"""Whether the loss with no further argument helps, from scratch and where a pretrained network is fine-tuned.

Three arms, each with six losses: "plain", "xml" (``CrossBatchPrototypeLoss(loss, pooling=pooling)``) and
"control", the same second loss, weight and pairs on the embeddings themselves, Y in place of Ŷ. Two kinds of
data:

- Glyphs, from random weights: the small network on 64 training classes.
- A folder of photographs: EfficientNet-lite0 with ImageNet weights at 128 pixels. The stages up to
  ``blocks.5`` are frozen and computed once, for six augmented copies of each training image and one of each
  other image. What is above them, a linear embedder and the prototypes are trained, with normalization layers
  in evaluation mode. Half of the classes is for testing; three quarters of the others are trained on and the
  rest validates.

First ``--tune`` trains plain at several learning rates, which validation classes choose among for each loss;
all arms then train at that rate. ``--explore`` trains variants of the formulation, with seeds of its own.
``--iterations`` sets the length of a run. Every run is tested at its best validation, in ``results.jsonl``;
what is printed and drawn is of validation classes, unless there is ``--test``. A killed study goes on where
it was:

    data="flowers=FOLDER grocery=FOLDER glyphs"
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --tune
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --explore --loss contrastive
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --test --plot differences.png

README.md beside this file says where data and weights come from, what else was tried, and what came out.
"""

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.statistics import paired_t_test
from tests.studies.fine_tuning_data import Data, compute_activations, load_glyphs
from tests.studies.fine_tuning_train import (
    CONTROL,
    MAP_AT_R,
    PLAIN,
    VARIANTS,
    XML,
    Arm,
    Job,
    setting_of,
    train,
)

#: Of the comparison; --tune chooses the learning rates with others.
FIRST_SEED = 100


@functools.lru_cache(maxsize=1)
def load_data(name: str, out: Path) -> Data:
    return load_glyphs() if name == "glyphs" else Data(**torch.load(out / f"{name}.pt", weights_only=True))


def run(job: Job, pretrained: str | None, out: Path) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    return train(load_data(job.data, out), job, pretrained)


def run_all(jobs: Iterable[Job], pretrained: str | None, out: Path, num_workers: int) -> None:
    """Runs what ``results.jsonl`` does not hold yet, and appends it there."""
    results = out / "results.jsonl"
    done = {job for job, _ in read(results)}
    missing = [job for job in jobs if job not in done]

    def append(job: Job, history: dict[str, list[float]]) -> None:
        with results.open("a") as file:
            file.write(json.dumps({**asdict(job), **history}) + "\n")

    if num_workers == 0:
        for job in missing:
            append(job, run(job, pretrained, out))
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        futures = {pool.submit(run, job, pretrained, out): job for job in missing}
        for future in as_completed(futures):
            append(futures[future], future.result())


def read(results: Path) -> list[tuple[Job, dict[str, list[float]]]]:
    if not results.exists():
        return []
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    keys = Job.__dataclass_fields__.keys()
    return [
        (
            Job(**{key: row[key] for key in keys & row.keys()} | {"arm": Arm(**row["arm"])}),
            {key: value for key, value in row.items() if key not in keys},
        )
        for row in rows
    ]


def chosen_rates(results: Path) -> dict[tuple[str, str], float]:
    """The learning rate of each data set and loss at which plain training validates best."""
    accuracies: dict[tuple[str, str], dict[float, list[float]]] = {}
    for job, history in read(results):
        if job.arm == PLAIN and job.seed < FIRST_SEED:
            rates = accuracies.setdefault((job.data, job.loss), {})
            rates.setdefault(job.learning_rate, []).append(max(history[MAP_AT_R]))
    return {
        key: max(rates, key=lambda rate: statistics.mean(rates[rate])) for key, rates in accuracies.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The loss against plain training, on three data sets.")
    parser.add_argument("--data", required=True, nargs="+", metavar="NAME=FOLDER", help="folders, or glyphs")
    parser.add_argument("--pretrained", help="state dict of timm's tf_efficientnet_lite0; random if left out")
    parser.add_argument("--loss", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--tune", action="store_true", help="plain training alone, at several learning rates")
    parser.add_argument("--explore", action="store_true", help="variants of the formulation")
    parser.add_argument("--arms", nargs="+", default=["plain", "xml", "control"], metavar="TERM")
    parser.add_argument("--seeds", type=int, help="default: 10; of --tune 3, of --explore 2")
    parser.add_argument("--iterations", type=int, default=Job.iterations, help="of each run, default: 250")
    parser.add_argument("--jobs", type=int, default=2, help="processes; 0 for none beside this one")
    parser.add_argument("--test", action="store_true", help="print the test classes, once validation decided")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the differences from plain")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    options.out.mkdir(parents=True, exist_ok=True)
    names = []
    for data in options.data:
        name, _, folder = data.partition("=")
        names.append(name)
        cache = options.out / f"{name}.pt"
        if folder and not cache.exists():
            torch.save(asdict(compute_activations(folder, options.pretrained)), cache)
    results = options.out / "results.jsonl"
    first_seed, num_seeds = (0, 3) if options.tune else (0, 2) if options.explore else (FIRST_SEED, 10)
    num_seeds = options.seeds or num_seeds
    jobs = []
    for seed, data, loss in itertools.product(range(first_seed, first_seed + num_seeds), names, options.loss):
        if options.tune:
            arms: list[Arm] = [PLAIN]
        elif options.explore:
            arms = [PLAIN, *VARIANTS]
        else:
            # For a contrastive loss of the same margins the control is plain training.
            arms = [Arm(term) for term in options.arms if (term, loss) != ("control", "contrastive")]
        rates = setting_of(data).learning_rates if options.tune else [chosen_rates(results)[data, loss]]
        jobs += [Job(data, loss, arm, seed, rate, options.iterations) for rate in rates for arm in arms]
    if first_seed == FIRST_SEED:
        jobs += [
            Job(data, "none", Arm("untouched"), 0, 0.0)
            for data in names
            if data != "glyphs" and options.pretrained is not None
        ]
    run_all(jobs, options.pretrained, options.out, options.jobs)
    shown = set(jobs)
    rows = [(job, history) for job, history in read(results) if job in shown]
    rows.sort(key=lambda row: names.index(row[0].data))
    print(table(rows, options.test))
    if options.plot is not None:
        plot(rows, options.plot, options.test)


Groups = dict[tuple[str, str, float], dict[Arm, dict[int, float]]]


def accuracies_of(rows: list[tuple[Job, dict[str, list[float]]]], is_test: bool) -> Groups:
    """MAP@R in percent by data set, loss and learning rate; arm; seed."""
    groups: Groups = {}
    for job, history in rows:
        group = groups.setdefault((job.data, job.loss, job.learning_rate), {})
        group.setdefault(job.arm, {})[job.seed] = history["test"][0] if is_test else max(history[MAP_AT_R])
    return groups


def plot(rows: list[tuple[Job, dict[str, list[float]]]], path: Path, is_test: bool) -> None:
    """Draw the differences between xml and plain: a dot a seed, a diamond for the mean, its interval."""
    groups = accuracies_of(rows, is_test)
    names = list(dict.fromkeys(data for data, loss, _ in groups if loss != "none"))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for name, panel in zip(names, figure.subplots(1, len(names), sharex=True, squeeze=False)[0], strict=True):
        by_loss = {loss: arms for (data, loss, _), arms in groups.items() if data == name and loss != "none"}
        ordered = [loss for loss in LOSSES if loss in by_loss]
        for line, loss in enumerate(ordered):
            plain, xml = (by_loss[loss].get(arm, {}) for arm in (PLAIN, XML))
            seeds = [seed for seed in plain if seed in xml]
            test = paired_t_test([plain[seed] for seed in seeds], [xml[seed] for seed in seeds])
            dots = [xml[seed] - plain[seed] for seed in seeds]
            panel.plot(dots, [line] * len(dots), "o", color="#0072b2", alpha=0.4, markersize=5)
            panel.plot([test.low, test.high], [line, line], color="black", linewidth=1.5)
            panel.plot(test.difference, line, "D", color="black", markersize=5)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(ordered)), [loss.replace("_", " ") for loss in ordered])
        panel.set_ylim(len(ordered) - 0.5, -0.5)
        panel.set_title(f"{name}, {'from scratch' if name == 'glyphs' else 'fine-tuned'}", fontsize="medium")
        panel.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        "MAP@R of XML minus MAP@R of plain training, percentage points. A dot a seed; diamond and bar: mean "
        "and 95% interval",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def table(rows: list[tuple[Job, dict[str, list[float]]]], is_test: bool = False) -> str:
    """A Markdown table of MAP@R in percent: each arm's mean, and differences with 95% intervals."""
    groups = accuracies_of(rows, is_test)
    lines = [
        "| data | loss | learning rate | arm | seeds | MAP@R, % | against plain | against control |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, loss, rate), arms in sorted(groups.items()):
        for arm, values in arms.items():
            differences = [
                _difference(values, arms.get(other, {})) if arm not in (PLAIN, other) else ""
                for other in (PLAIN, CONTROL)
            ]
            mean = f"{statistics.mean(values.values()):.2f}"
            cells = [data, loss, f"{rate:g}", _name(arm), str(len(values)), mean, *differences]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(arm: Arm) -> str:
    changed = [
        f"{key}={value}"
        for key, value in asdict(arm).items()
        if key != "term" and value != getattr(PLAIN, key)
    ]
    return " ".join([arm.term, *changed])


def _difference(values: dict[int, float], others: dict[int, float]) -> str:
    seeds = [seed for seed in values if seed in others]
    if len(seeds) < 3:
        return ", ".join(f"{values[seed] - others[seed]:+.2f}" for seed in seeds)
    test = paired_t_test([others[seed] for seed in seeds], [values[seed] for seed in seeds])
    return f"{test.difference:+.2f} ({test.low:+.2f} to {test.high:+.2f})"


if __name__ == "__main__":
    main()
