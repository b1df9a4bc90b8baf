"""The arms of the study, and one run of it."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn
from torch.nn.functional import normalize

from pml_xbml import functional
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling, SmallTrunk
from tests.studies.fine_tuning_data import Data, backbone

SAMPLES_PER_CLASS, EMBEDDING_SIZE, PROTOTYPE_IMAGES = 4, 128, 256
MAP_AT_R, PRECISION_AT_1 = "mean_average_precision_at_r", "precision_at_1"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        term: "untouched", the pretrained features; "plain", no second term; "xml", the loss of the package
            with its defaults; "control", the same second loss on Y; "both", 0.75 of "xml" and 0.25 of the
            second loss on Y; "expressed", a variant of the formulation, which the other attributes describe.
            At their defaults it is "xml".
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
    Arm("both"),
)


@dataclass(frozen=True)
class Setting:
    """How the networks of one kind of data are trained."""

    batch_size: int
    validation_interval: int
    learning_rates: tuple[float, ...]


PHOTOGRAPHS = Setting(64, 50, (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3))
FROM_SCRATCH = Setting(64, 50, (1e-3, 3e-3, 1e-2, 3e-2))


@dataclass(frozen=True)
class Job:
    """One run: what its result depends on."""

    data: str
    loss: str
    arm: Arm
    seed: int
    learning_rate: float
    iterations: int = 250


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
    xml = CrossBatchPrototypeLoss(loss, pooling=pooling) if arm.term == "both" else None

    class WithSecondTerm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss
            self.ratio: float | None = None

        def forward(self, embeddings: Tensor, labels: Tensor, tuples: tuple[Tensor, ...] | None) -> Tensor:
            second = embeddings
            if xml is not None:
                both: Tensor = 0.75 * xml(embeddings, labels, tuples) + 0.25 * second_loss(embeddings, labels)
                return both
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
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.iterations)
    sampler = DisjointClassPairSampler(
        data.train_labels,
        SAMPLES_PER_CLASS,
        setting.batch_size,
        job.iterations * setting.batch_size,
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
