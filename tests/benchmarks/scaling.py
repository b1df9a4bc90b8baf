"""How cost grows with batch, prototypes, classes and data, beside what the operation counts say.

python tests/benchmarks/scaling.py --plot scaling.png

Each curve is divided by its first point. All sizes take turns in every round, so that a busy neighbor
slows them alike; what is timed is the process's own time, of one thread.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from pytorch_metric_learning.losses import ContrastiveLoss

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling

GROWTH = (1, 2, 4, 8)
CHANNELS, SIDE, EMBEDDING_SIZE = 512, 7, 128


def pooling_step(batch_size, num_prototypes):
    pooling = PrototypePooling(CHANNELS, num_prototypes)
    feature_maps = torch.randn(batch_size, CHANNELS, SIDE, SIDE).relu_().requires_grad_()

    def step():
        average = pooling(feature_maps)
        torch.autograd.grad(average.sum() + pooling.histograms[:, 0].sum(), feature_maps)

    return step


def pooling_operations(batch_size, num_prototypes):
    products = 6 * num_prototypes
    reads_and_writes = 10
    return batch_size * SIDE**2 * CHANNELS * (products + reads_and_writes)


def fit_step(batch_size, num_prototypes):
    embeddings = torch.randn(batch_size, EMBEDDING_SIZE, requires_grad=True)
    histograms = torch.randn(batch_size, num_prototypes).softmax(1).requires_grad_()

    def step():
        expressed = functional.cross_batch_expression(histograms, embeddings, ridge=0.05)
        torch.autograd.grad(expressed.sum(), (histograms, embeddings))

    return step


def fit_operations(batch_size, num_prototypes):
    """Multiplications of the primal or the dual form, forward and backward, of both halves."""
    half, solved = batch_size // 2, min(batch_size // 2, num_prototypes)
    gram_and_expression = 2 * half * num_prototypes * (solved + 4 * EMBEDDING_SIZE)
    return 2 * (gram_and_expression + 4 * solved**2 * EMBEDDING_SIZE + solved**3)


def loss_step(num_classes):
    embeddings, histograms = torch.randn(256, EMBEDDING_SIZE), torch.randn(256, 64).softmax(1)
    labels = torch.arange(256) * num_classes // 256
    loss = CrossBatchPrototypeLoss(ContrastiveLoss())
    embeddings.requires_grad_()
    return lambda: torch.autograd.grad(loss(embeddings, labels, histograms=histograms), embeddings)


def sampler_step(num_samples):
    labels = np.random.default_rng(0).permutation(np.arange(num_samples) // 10)
    return lambda: DisjointClassPairSampler(labels, m=4, batch_size=128)


CURVES = {
    "pooling, batch 8 to 64": [(pooling_step, pooling_operations, (8 * g, 64)) for g in GROWTH],
    "pooling, 32 to 256 prototypes": [(pooling_step, pooling_operations, (16, 32 * g)) for g in GROWTH],
    "fit, batch 512 to 4,096": [(fit_step, fit_operations, (512 * g, 64)) for g in GROWTH],
    "fit, 32 to 256 prototypes": [(fit_step, fit_operations, (1024, 32 * g)) for g in GROWTH],
    "loss, 8 to 64 classes": [(loss_step, lambda _: 1, (8 * g,)) for g in GROWTH],
    "sampler, 10⁵ to 8·10⁵ samples": [(sampler_step, lambda n: n * np.log(n), (10**5 * g,)) for g in GROWTH],
}


def measured(steps, rounds):
    """Median time of each step, relative to the first, of rounds in which all take turns."""
    times = []
    for _ in range(rounds + 1):
        times.append([])
        for step in steps:
            start = time.process_time()
            step()
            times[-1].append(time.process_time() - start)
    return [statistics.median(row[index] / row[0] for row in times[1:]) for index in range(len(steps))]


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (name, (times, operations)) in zip(figure.subplots(2, 3).flat, results.items(), strict=True):
        axes.loglog(GROWTH, operations, "--", color="gray", label="operation counts")
        axes.loglog(GROWTH, times, "o-", label="measured")
        axes.set_title(name, fontsize=10)
        axes.set_xticks(GROWTH, [f"×{growth}" for growth in GROWTH])
        axes.set_yticks(GROWTH, [f"×{growth}" for growth in GROWTH])
        axes.minorticks_off()
        axes.set_ylim(0.7, 1.2 * max(8, *times, *operations))
    figure.axes[0].legend()
    figure.supylabel("time")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", metavar="PNG", help="write the curves to this file")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, points in CURVES.items():
        operations = [count(*size) for _, count, size in points]
        times = measured([build(*size) for build, _, size in points], arguments.rounds)
        results[name] = (times, [count / operations[0] for count in operations])
        rows = zip(*results[name], strict=True)
        print(f"{name}: " + ", ".join(f"×{time:.2f} (counts ×{count:.2f})" for time, count in rows))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
