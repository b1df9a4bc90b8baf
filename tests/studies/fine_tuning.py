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

First ``--tune`` trains plain at three learning rates, which validation classes choose among for each loss;
all arms then train at that rate. ``--explore`` trains variants of the formulation, with seeds of its own.
Every run is tested at its best validation. A killed study goes on where it was, and the test classes are
shown with ``--test`` alone:

    data="flowers=FOLDER grocery=FOLDER glyphs"
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --tune
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --explore --loss contrastive
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth
    python -m tests.studies.fine_tuning --data $data --pretrained lite0.pth --test --plot differences.png

README.md beside this file says where data and weights come from, what else was tried, and what came out.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pml_xbml import functional
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.splits import load_splits, split_classes
from pml_xbml.comparison.statistics import paired_t_test
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling, SmallTrunk

NUM_FROZEN_STAGES, NUM_COPIES, IMAGE_SIZE = 6, 6, 128
SAMPLES_PER_CLASS, EMBEDDING_SIZE, PROTOTYPE_IMAGES = 4, 128, 256
#: Of the comparison; --tune chooses the learning rates with others.
FIRST_SEED = 100
MAP_AT_R, PRECISION_AT_1 = "mean_average_precision_at_r", "precision_at_1"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        term: "untouched", the pretrained features; "plain", no second term; "xml", the loss of the package
            with its defaults; "control", the same second loss on Y; "expressed", a variant of the
            formulation, which the other attributes describe. At their defaults it is "xml".
        weight: λ in (1 − λ) ℓ(Y) + λ ℓ_2.
        ridge: ε, relative to the histograms' variance.
        num_prototypes: m.
        pairs: that ℓ_2 compares: "all", those "within" the halves, or its negative ones "across" them.
        adds_mean: Ŷ_1 = (Z_1 − z̄_2) A_2 + ȳ_2 instead of the deviation alone.
        balances: whether λ is multiplied by a running ratio of the two losses' gradients on the embeddings.
    """

    term: str = "plain"
    weight: float = 0.3
    ridge: float = 0.05
    num_prototypes: int = 16
    pairs: str = "all"
    adds_mean: bool = False
    balances: bool = False


PLAIN, XML, CONTROL = Arm(), Arm("xml"), Arm("control")

#: What ``--explore`` trains beside plain: one change of the formulation each, and pairs of them.
VARIANTS = (
    XML,
    *(Arm("expressed", weight) for weight in (0.1, 0.5)),
    *(Arm("expressed", num_prototypes=number) for number in (4, 8, 32, 64)),
    Arm("expressed", ridge=0.5),
    Arm("expressed", balances=True),
    Arm("expressed", 0.1, balances=True),
    Arm("expressed", adds_mean=True),
    *(Arm("expressed", pairs=pairs) for pairs in ("within", "across")),
    Arm("expressed", num_prototypes=64, pairs="within"),
    Arm("expressed", num_prototypes=64, adds_mean=True),
    Arm("expressed", 0.1, num_prototypes=64),
    CONTROL,
)


@dataclass(frozen=True)
class Setting:
    """How the networks of one kind of data are trained."""

    batch_size: int
    iterations: int
    validation_interval: int
    learning_rates: tuple[float, ...]


PHOTOGRAPHS = Setting(64, 250, 50, (3e-5, 1e-4, 3e-4))
FROM_SCRATCH = Setting(64, 250, 50, (1e-3, 3e-3, 1e-2))


@dataclass(frozen=True)
class Data:
    """Glyphs, or activations of frozen stages: (N, copies, C, H, W) to train, (N, C, H, W) to evaluate."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Job:
    """One run: what its result depends on."""

    data: str
    loss: str
    arm: Arm
    seed: int
    learning_rate: float


def backbone(pretrained: str | None) -> tuple[nn.Module, nn.Module]:
    """The frozen stages and the trained ones, which give feature maps."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    if pretrained is not None:
        network.load_state_dict(torch.load(pretrained, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    frozen = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:NUM_FROZEN_STAGES])
    trained = nn.Sequential(*network.blocks[NUM_FROZEN_STAGES:], network.conv_head, network.bn2)
    return frozen.requires_grad_(False), trained


@torch.no_grad()
def compute_activations(folder: str, pretrained: str | None) -> Data:
    """Of the photographs of a folder with a folder a class."""
    frozen, _ = backbone(pretrained)
    to_tensor = [
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=(0.16, 1)),
            transforms.RandomHorizontalFlip(),
            *to_tensor,
        ]
    )
    center = transforms.Compose(
        [transforms.Resize(IMAGE_SIZE * 256 // 224), transforms.CenterCrop(IMAGE_SIZE), *to_tensor]
    )
    images = ImageFolder(folder)
    num_classes = len(images.classes)
    test, pool = split_classes(range(num_classes), num_classes // 2)
    train, val = split_classes(pool, len(pool) * 3 // 4)
    classes = {"train": train, "val": val, "test": test}
    torch.manual_seed(0)
    rows: dict[str, list[Tensor]] = {split: [] for split in classes}
    labels: dict[str, list[int]] = {split: [] for split in classes}
    for path, label in images.samples:
        (split,) = (split for split, members in classes.items() if label in members)
        image = Image.open(path).convert("RGB")
        views = [augment(image) for _ in range(NUM_COPIES)] if split == "train" else [center(image)]
        activations = frozen(torch.stack(views).to(memory_format=torch.channels_last)).half()
        rows[split].append(activations if split == "train" else activations[0])
        labels[split].append(classes[split].index(label))
    return Data(
        **{split: torch.stack(rows[split]) for split in classes},
        **{f"{split}_labels": torch.tensor(labels[split]) for split in classes},
    )


def load_glyphs() -> Data:
    splits = load_splits("glyphs", train_classes=64)
    tensors = {}
    for name, subset in (("train", splits.train), ("val", splits.val), ("test", splits.test["test"])):
        images, labels = zip(*(subset[index] for index in range(len(subset))), strict=True)
        tensors[name] = torch.stack(images)
        tensors[f"{name}_labels"] = torch.tensor([int(label) for label in labels])
    tensors["train"] = tensors["train"].unsqueeze(1)
    return Data(**tensors)


class Network(nn.Module):
    """Trained stages, pooling and embedder."""

    def __init__(self, data: str, pretrained: str | None, num_prototypes: int) -> None:
        super().__init__()
        self.is_pretrained = data != "glyphs"
        trunk = backbone(pretrained)[1] if self.is_pretrained else nn.Sequential(*list(SmallTrunk())[:-2])
        self.trunk = trunk.to(memory_format=torch.channels_last)
        num_features = 1280 if self.is_pretrained else 128
        self.embedder = nn.Linear(num_features, EMBEDDING_SIZE)
        self.pooling = PrototypePooling(num_features, num_prototypes)

    def maps(self, inputs: Tensor) -> Tensor:
        # On this kind of CPU bfloat16 takes half of the time. It is the same for all arms.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_pretrained):
            maps: Tensor = self.trunk(inputs.float().contiguous(memory_format=torch.channels_last))
        return maps.float()

    def forward(self, inputs: Tensor) -> Tensor:
        embeddings: Tensor = self.embedder(self.pooling(self.maps(inputs)))
        return embeddings

    def start_training(self) -> None:
        """Training mode, but for the normalization layers of a pretrained network."""
        self.train()
        self.trunk.train(not self.is_pretrained)


def express(histograms: Tensor, embeddings: Tensor, arm: Arm) -> Tensor:
    """Ŷ of a batch whose first and second half share no class."""
    targets = normalize(embeddings)
    expressed = functional.cross_batch_expression(histograms, targets, arm.ridge, intercept=True)
    if not arm.adds_mean:
        return expressed
    fitted_means = targets.unflatten(0, (2, -1)).mean(1).flip(0)
    return expressed + fitted_means.repeat_interleave(len(targets) // 2, dim=0)


def pairs_of(labels: Tensor, kind: str) -> tuple[Tensor, ...] | None:
    """Pairs of a batch that is cut in the middle, as miners give them; None for all."""
    if kind == "all":
        return None
    same_class = labels.unsqueeze(1) == labels
    in_first = torch.arange(len(labels)) < len(labels) // 2
    same_half = in_first.unsqueeze(1) == in_first
    negative = ~same_class & (same_half if kind == "within" else ~same_half)
    return (*torch.where(same_class.fill_diagonal_(False)), *torch.where(negative))


def build_loss(arm: Arm, loss: nn.Module, pooling: PrototypePooling) -> nn.Module:
    """The loss of (embeddings, labels, tuples)."""
    if arm.term == "plain":
        return loss
    if arm.term == "xml":
        return CrossBatchPrototypeLoss(loss, pooling=pooling)
    second_loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1)

    class WithSecondTerm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss
            self.ratio: float | None = None

        def forward(self, embeddings: Tensor, labels: Tensor, tuples: tuple[Tensor, ...] | None) -> Tensor:
            second = embeddings
            if arm.term == "expressed":
                second = express(pooling.histograms_of(embeddings), embeddings, arm)
            pairs = pairs_of(labels, arm.pairs)
            first: Tensor = self.loss(embeddings, labels, tuples)
            cross = second_loss(second, labels, pairs)
            if not arm.balances:
                return (1 - arm.weight) * first + arm.weight * cross
            norms = [
                torch.autograd.grad(term, embeddings, retain_graph=True)[0].norm() for term in (first, cross)
            ]
            if all(norm > 0 for norm in norms):
                ratio = float(norms[0] / norms[1])
                self.ratio = ratio if self.ratio is None else 0.9 * self.ratio + 0.1 * ratio
            return (1 - arm.weight) * first + arm.weight * (self.ratio or 1) * cross

    return WithSecondTerm()


def train(data: Data, job: Job, pretrained: str | None) -> dict[str, list[float]]:
    """Train one run; MAP@R and precision@1 of each validation, and of the test at the best, in percent."""
    setting = setting_of(job.data)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  pytorch-metric-learning draws from the global generator
    network = Network(job.data, pretrained, job.arm.num_prototypes)
    if job.arm.term == "untouched":
        network.embedder = nn.Identity()
        accuracies = {split: evaluate(network, data, split) for split in ("val", "test")}
        return _history([accuracies["val"]], accuracies["test"])
    settings = LOSSES[job.loss]
    metric_loss = settings.build(int(data.train_labels.max()) + 1, EMBEDDING_SIZE)
    miner = None if settings.build_miner is None else settings.build_miner()
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(job.seed))
    with torch.no_grad():
        network.trunk.eval()
        network.pooling.init_prototypes(network.maps(data.train[chosen[:PROTOTYPE_IMAGES], 0]))
    loss_function = build_loss(job.arm, metric_loss, network.pooling)
    optimizer = torch.optim.Adam(
        [
            {"params": network.trunk.parameters(), "lr": job.learning_rate},
            {"params": [*network.embedder.parameters(), *network.pooling.parameters()], "lr": 1e-3},
            {"params": list(metric_loss.parameters()), "lr": settings.learning_rate or 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.iterations)
    sampler = DisjointClassPairSampler(
        data.train_labels,
        SAMPLES_PER_CLASS,
        setting.batch_size,
        setting.iterations * setting.batch_size,
        seed=job.seed,
    )
    augmentations = torch.Generator().manual_seed(job.seed)
    validations: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    network.start_training()
    for iteration, batch in enumerate(_batches(sampler, setting.batch_size), start=1):
        augmented = torch.randint(data.train.shape[1], (len(batch),), generator=augmentations)
        labels = data.train_labels[batch]
        embeddings = network(data.train[batch, augmented])
        tuples = None if miner is None else miner(embeddings, labels)
        loss = loss_function(embeddings, labels, tuples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % setting.validation_interval == 0:
            validations.append(evaluate(network, data, "val"))
            if validations[-1][MAP_AT_R] == max(validation[MAP_AT_R] for validation in validations):
                best = copy.deepcopy(network.state_dict())
            network.start_training()
    network.load_state_dict(best)
    return _history(validations, evaluate(network, data, "test"))


def _history(validations: list[dict[str, float]], test: dict[str, float]) -> dict[str, list[float]]:
    history = {metric: [values[metric] for values in validations] for metric in (MAP_AT_R, PRECISION_AT_1)}
    return {**history, "test": [test[MAP_AT_R], test[PRECISION_AT_1]]}


@torch.no_grad()
def evaluate(network: Network, data: Data, split: str) -> dict[str, float]:
    network.eval()
    embeddings = normalize(torch.cat([network(chunk) for chunk in getattr(data, split).split(256)]))
    calculator = AccuracyCalculator(include=(MAP_AT_R, PRECISION_AT_1), k="max_bin_count")
    accuracies = calculator.get_accuracy(embeddings, getattr(data, f"{split}_labels"))
    return {metric: round(100 * value, 3) for metric, value in accuracies.items()}


def _batches(sampler: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    indices = iter(sampler)
    while batch := list(itertools.islice(indices, batch_size)):
        yield batch


def setting_of(data: str) -> Setting:
    return FROM_SCRATCH if data == "glyphs" else PHOTOGRAPHS


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
            Job(**{key: Arm(**row[key]) if key == "arm" else row[key] for key in keys}),
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
    parser.add_argument("--tune", action="store_true", help="plain training at three learning rates alone")
    parser.add_argument("--explore", action="store_true", help="variants of the formulation")
    parser.add_argument("--arms", nargs="+", default=["plain", "xml", "control"], metavar="TERM")
    parser.add_argument("--seeds", type=int, help="default: 10; of --tune 1, of --explore 2")
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
    first_seed, num_seeds = (0, 1) if options.tune else (0, 2) if options.explore else (FIRST_SEED, 10)
    num_seeds = options.seeds or num_seeds
    jobs = []
    for seed, data, loss in itertools.product(range(first_seed, first_seed + num_seeds), names, options.loss):
        if options.tune:
            jobs += [Job(data, loss, PLAIN, seed, rate) for rate in setting_of(data).learning_rates]
            continue
        rate = chosen_rates(results)[data, loss]
        if options.explore:
            jobs += [Job(data, loss, arm, seed, rate) for arm in (PLAIN, *VARIANTS)]
            continue
        # For a contrastive loss of the same margins the control is plain training.
        terms = [term for term in options.arms if (term, loss) != ("control", "contrastive")]
        jobs += [Job(data, loss, Arm(term), seed, rate) for term in terms]
    if first_seed == FIRST_SEED:
        jobs += [
            Job(data, "none", Arm("untouched"), 0, 0.0)
            for data in names
            if data != "glyphs" and options.pretrained is not None
        ]
    run_all(jobs, options.pretrained, options.out, options.jobs)
    rows = [(job, history) for job, history in read(results) if job in set(jobs)]
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
