"""Trains the demo's task on several processes.

    torchrun --nproc-per-node 2 -m pml_xbml.examples.distributed

Copy it for a training of your own: what differs from a single process is marked by "All processes:".
"""

import argparse
import os
from collections.abc import Sequence

import torch
from pytorch_metric_learning import losses, testers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from pml_xbml.comparison.splits import load_splits
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk


def train(iterations: int, batch_size: int, seed: int, device: torch.device) -> torch.nn.Module:
    """Trains trunk and embedder together with the other processes, which end with the same weights.

    Args:
        iterations: steps to take.
        batch_size: images of this process in a step.
        seed: the same for all processes.
        device: of this process.

    Returns:
        The network, from images to embeddings.
    """
    train_set = load_splits("glyphs", train_classes=64).train
    # All processes: the same seed, for the same weights and the same plan of the batches.
    torch.manual_seed(seed)
    trunk = PrototypePoolingTrunk(SmallTrunk(), num_prototypes=64)
    network = torch.nn.Sequential(trunk, torch.nn.Linear(trunk.num_features, 128)).to(device)
    chosen = torch.randperm(len(train_set))[:256]
    trunk.init_prototypes(torch.stack([train_set[index][0] for index in chosen]))
    sampler = DisjointClassPairSampler(
        train_set.labels,
        m=4,
        batch_size=batch_size,
        length_before_new_iter=iterations * batch_size,
        seed=seed,
    )

    # All processes: gradients are averaged, and the loss sees the batches of all.
    parallel = DistributedDataParallel(network)
    loss = CrossBatchPrototypeLoss(losses.ContrastiveLoss(pos_margin=0, neg_margin=1), pooling=trunk)
    distributed_loss = DistributedLossWrapper(loss)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = DataLoader(train_set, batch_size, sampler=sampler, drop_last=True)
    for images, labels in tqdm(loader, disable=torch.distributed.get_rank() != 0):
        optimizer.zero_grad()
        distributed_loss(parallel(images.to(device)), labels.to(device)).backward()
        optimizer.step()
    return network


def measured_accuracy(network: torch.nn.Module) -> dict[str, float]:
    """Retrieval among the characters of the test classes, none of which was trained on."""
    test_set = load_splits("glyphs").test["test"]
    embeddings, labels = testers.BaseTester(batch_size=128, dataloader_num_workers=0).get_all_embeddings(
        test_set, network.eval()
    )
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count"
    )
    accuracy: dict[str, float] = calculator.get_accuracy(embeddings, labels.squeeze(1))
    return accuracy


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and prints the accuracy from the first process.

    Args:
        arguments: those of the command line, if left out.
    """
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m pml_xbml.examples.distributed",
        description="Trains a small network on Glyphs with N processes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=200, help="steps to take")
    parser.add_argument("--batch-size", type=int, default=32, help="images of each process in a step")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prototypes and batches")
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("torchrun starts the processes: run this as the usage line says")

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        network = train(options.iterations, options.batch_size, options.seed, device)
        if torch.distributed.get_rank() == 0:
            for metric, value in measured_accuracy(network).items():
                print(f"{metric}: {value:.4f}")
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
