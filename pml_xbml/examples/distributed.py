"""PyTorch's DistributedDataParallel with pytorch-metric-learning's DistributedLossWrapper.

    torchrun --nproc-per-node 2 -m pml_xbml.examples.distributed

It trains a small network on Glyphs and prints MAP@R on validation classes. What differs from one process is
marked by "All processes:".
"""

import argparse
import os
from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from pml_xbml.datasets import Glyphs
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairBatchSampler
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk


def validate(network: torch.nn.Module, images: Subset[Any], device: torch.device) -> float:
    """MAP@R among characters that are not trained on."""
    network.eval()
    with torch.inference_mode():
        batches = [(network(batch.to(device)).cpu(), labels) for batch, labels in DataLoader(images, 256)]
    network.train()
    embeddings, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    accuracy: dict[str, float] = calculator.get_accuracy(embeddings, labels)
    return accuracy["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="steps to take")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("torchrun must start the processes: torchrun --nproc-per-node 2 -m " + __spec__.name)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")

    glyphs = Glyphs("train", transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()]))
    training = [index for index, label in enumerate(glyphs.labels) if label < 400]
    validation = [index for index, label in enumerate(glyphs.labels) if label >= 400]
    # All processes: the same seed, for the same weights and prototypes.
    torch.manual_seed(0)
    trunk = PrototypePoolingTrunk(SmallTrunk())
    chosen = torch.randperm(len(training))[:256].tolist()
    trunk.init_prototypes(torch.stack([glyphs[training[index]][0] for index in chosen]))
    network = torch.nn.Sequential(trunk, torch.nn.Linear(trunk.num_features, 128)).to(device)
    is_first = torch.distributed.get_rank() == 0
    if is_first:
        accuracy = validate(network, Subset(glyphs, validation), device)
        print(f"untrained: validation MAP@R {accuracy:.4f}", flush=True)

    # All processes: the same seed, for one plan, of which the sampler gives each process its part.
    labels = [glyphs.labels[index] for index in training]
    sampler = DisjointClassPairBatchSampler(labels, 4, 16, num_batches=options.iterations, seed=0)
    # All processes: gradients are averaged, and the loss sees the batches of all.
    parallel = DistributedDataParallel(network)
    loss = CrossBatchPrototypeLoss(pml_losses.ContrastiveLoss(), pooling=trunk)
    distributed_loss = DistributedLossWrapper(loss)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for images, batch_labels in DataLoader(Subset(glyphs, training), batch_sampler=sampler):
        optimizer.zero_grad()
        distributed_loss(parallel(images.to(device)), batch_labels.to(device)).backward()
        optimizer.step()

    if is_first:
        accuracy = validate(network, Subset(glyphs, validation), device)
        print(f"iteration {options.iterations}: validation MAP@R {accuracy:.4f}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
