"""How the second term should be formed where a pretrained network is fine-tuned on photographs.

EfficientNet-lite0 with ImageNet weights at 128 pixels. The stages up to ``blocks.5`` are frozen and computed
once, for six augmented copies of each training image and one of each other image. What is above them, a
linear embedder and the prototypes are trained, with normalization layers in evaluation mode. Half of the
classes is for testing and is not touched here; three quarters of the others are trained on and the rest
validates. A killed study goes on where it was:

    python -m tests.studies.fine_tuning --data grocery=FOLDER --weights lite0.pth --loss contrastive --seeds 2

README.md beside this file says where data and weights come from, and what came out.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pml_xbml import functional
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.splits import split_classes
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling

NUM_FROZEN_STAGES, NUM_COPIES, IMAGE_SIZE = 6, 6, 128
BATCH_SIZE, SAMPLES_PER_CLASS, EMBEDDING_SIZE, VALIDATION_INTERVAL = 64, 4, 128, 50
PROTOTYPE_IMAGES = 256


@dataclass(frozen=True)
class Arm:
    """One way to form the second term.

    Attributes:
        term: "plain", no second term; "expressed", a contrastive loss on Ŷ; "control", the same loss on Y.
        weight: λ in (1 − λ) ℓ(Y) + λ ℓ_2.
        ridge: ε, relative to the histograms' variance.
        adds_mean: Ŷ_1 = (Z_1 − z̄_2) A_2 + ȳ_2 instead of the deviation alone.
    """

    term: str = "plain"
    weight: float = 0.0
    ridge: float = 0.05
    adds_mean: bool = False


ARMS = (
    Arm(),
    *(
        Arm("expressed", weight, ridge, adds_mean)
        for weight, ridge, adds_mean in itertools.product((0.1, 0.3), (0.05, 0.5), (False, True))
    ),
    Arm("control", 0.1),
    Arm("control", 0.3),
)


@dataclass(frozen=True)
class Activations:
    """Of the frozen stages: training images (N, copies, C, H, W), validation images (N, C, H, W)."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


def backbone(weights: str | None) -> tuple[nn.Module, nn.Module]:
    """The frozen stages and the trained ones, which give feature maps."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    frozen = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:NUM_FROZEN_STAGES])
    trained = nn.Sequential(*network.blocks[NUM_FROZEN_STAGES:], network.conv_head, network.bn2)
    return frozen.requires_grad_(False), trained


@torch.no_grad()
def compute_activations(folder: str, weights: str | None) -> Activations:
    frozen, _ = backbone(weights)
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
    data = ImageFolder(folder)
    num_classes = len(data.classes)
    _, pool = split_classes(range(num_classes), num_classes // 2)
    training_classes, validation_classes = split_classes(pool, len(pool) * 3 // 4)
    torch.manual_seed(0)
    rows: dict[str, list[Tensor]] = {"train": [], "val": []}
    labels: dict[str, list[int]] = {"train": [], "val": []}
    for path, label in data.samples:
        if label not in pool:
            continue
        image = Image.open(path).convert("RGB")
        split = "train" if label in training_classes else "val"
        views = [augment(image) for _ in range(NUM_COPIES)] if split == "train" else [center(image)]
        images = torch.stack(views).to(memory_format=torch.channels_last)
        activations = frozen(images).half()
        rows[split].append(activations if split == "train" else activations[0])
        classes = training_classes if split == "train" else validation_classes
        labels[split].append(classes.index(label))
    return Activations(
        torch.stack(rows["train"]),
        torch.tensor(labels["train"]),
        torch.stack(rows["val"]),
        torch.tensor(labels["val"]),
    )


def express(histograms: Tensor, embeddings: Tensor, arm: Arm) -> Tensor:
    """Ŷ of a batch whose first and second half share no class."""
    targets = normalize(embeddings)
    expressed = functional.cross_batch_expression(histograms, targets, arm.ridge, intercept=True)
    if not arm.adds_mean:
        return expressed
    fitted_means = targets.unflatten(0, (2, -1)).mean(1).flip(0)
    return expressed + fitted_means.repeat_interleave(len(targets) // 2, dim=0)


def train(
    activations: Activations,
    weights: str | None,
    loss_name: str,
    arm: Arm,
    seed: int,
    iterations: int,
    learning_rate: float,
) -> dict[str, list[float]]:
    """Train one run; MAP@R and precision@1 of each validation, in percent."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  pytorch-metric-learning draws from the global generator
    _, trunk = backbone(weights)
    embedder = nn.Linear(1280, EMBEDDING_SIZE)
    settings = LOSSES[loss_name]
    metric_loss = settings.build(int(activations.train_labels.max()) + 1, EMBEDDING_SIZE)
    miner = None if settings.build_miner is None else settings.build_miner()
    pooling = PrototypePooling(1280)
    start = torch.randperm(len(activations.train), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        pooling.init_prototypes(trunk(activations.train[start[:PROTOTYPE_IMAGES], 0].float()))
    optimizer = torch.optim.Adam(
        [
            {"params": trunk.parameters(), "lr": learning_rate},
            {"params": [*embedder.parameters(), *pooling.parameters()], "lr": 1e-3},
            {"params": list(metric_loss.parameters()), "lr": settings.learning_rate or 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    second_loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1)
    sampler = DisjointClassPairSampler(
        activations.train_labels, SAMPLES_PER_CLASS, BATCH_SIZE, iterations * BATCH_SIZE, seed=seed
    )
    copies = torch.Generator().manual_seed(seed)
    history: dict[str, list[float]] = {"mean_average_precision_at_r": [], "precision_at_1": []}
    calculator = AccuracyCalculator(include=tuple(history), k="max_bin_count")
    for iteration, batch in enumerate(_batches(sampler), start=1):
        copy = torch.randint(activations.train.shape[1], (len(batch),), generator=copies)
        maps = trunk(activations.train[batch, copy].float().to(memory_format=torch.channels_last))
        labels = activations.train_labels[batch]
        embeddings = embedder(pooling(maps))
        tuples = None if miner is None else miner(embeddings, labels)
        loss = metric_loss(embeddings, labels, tuples)
        if arm.term != "plain":
            is_control = arm.term == "control"
            second = embeddings if is_control else express(pooling.histograms, embeddings, arm)
            loss = (1 - arm.weight) * loss + arm.weight * second_loss(second, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % VALIDATION_INTERVAL == 0 or iteration == iterations:
            accuracies = calculator.get_accuracy(
                _embed(trunk, embedder, activations.val), activations.val_labels
            )
            for metric, values in history.items():
                values.append(round(100 * accuracies[metric], 3))
    return history


def _batches(sampler: DisjointClassPairSampler) -> Iterator[list[int]]:
    indices = iter(sampler)
    while batch := list(itertools.islice(indices, BATCH_SIZE)):
        yield batch


@torch.no_grad()
def _embed(trunk: nn.Module, embedder: nn.Module, activations: Tensor) -> Tensor:
    chunks = activations.split(256)
    return torch.cat([embedder(trunk(chunk.float()).mean((2, 3))) for chunk in chunks])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Formulations of the second term in fine-tuning.")
    parser.add_argument("--data", required=True, metavar="NAME=FOLDER", help="a folder of images a class")
    parser.add_argument("--weights", help="state dict of timm's tf_efficientnet_lite0; random if left out")
    parser.add_argument("--loss", nargs="+", choices=list(LOSSES), default=["contrastive"])
    parser.add_argument("--only", nargs="+", type=int, default=list(range(len(ARMS))), help="arms, by number")
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[1e-4], help="of the trunk")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    name, folder = options.data.split("=", 1)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / f"{name}.pt"
    if not cache.exists():
        torch.save(asdict(compute_activations(folder, options.weights)), cache)
    activations = Activations(**torch.load(cache, weights_only=True))
    results = options.out / "results.jsonl"
    for seed, loss, rate, number in itertools.product(
        range(options.seeds), options.loss, options.learning_rate, options.only
    ):
        settings = {
            "data": name,
            "loss": loss,
            "learning_rate": rate,
            "iterations": options.iterations,
            "seed": seed,
            **asdict(ARMS[number]),
        }
        if settings not in [settings_of(row) for row in read(results)]:
            history = train(activations, options.weights, loss, ARMS[number], seed, options.iterations, rate)
            with results.open("a") as file:
                file.write(json.dumps({**settings, **history}) + "\n")
    print(table(read(results)))


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def settings_of(row: dict) -> dict:
    return {key: value for key, value in row.items() if not isinstance(value, list)}


def table(rows: list[dict]) -> str:
    """A Markdown table: each arm's best validation MAP@R, and its distance from plain training."""
    groups: dict[tuple, dict[int, float]] = {}
    for row in rows:
        group = (row["data"], row["loss"], row["learning_rate"], row["iterations"])
        arm = Arm(**{key: row[key] for key in asdict(Arm())})
        groups.setdefault((*group, arm), {})[row["seed"]] = max(row["mean_average_precision_at_r"])
    lines = [
        "| data | loss | learning rate | second term | λ | ε | mean added | MAP@R, % | against plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, loss, rate, iterations, arm), values in sorted(groups.items(), key=str):
        plain = groups.get((data, loss, rate, iterations, Arm()), {})
        differences = ", ".join(
            f"{value - plain[seed]:+.2f}" for seed, value in sorted(values.items()) if seed in plain
        )
        is_expressed = arm.term == "expressed"
        formed = (f"{arm.ridge:g}", "yes" if arm.adds_mean else "no") if is_expressed else ("", "")
        weight = f"{arm.weight:g}" if arm.term != "plain" else ""
        cells = [data, loss, f"{rate:g}", arm.term, weight, *formed, f"{np.mean(list(values.values())):.2f}"]
        lines.append("| " + " | ".join([*cells, "" if arm.term == "plain" else differences]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
