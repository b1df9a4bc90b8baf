"""What `torchrun` runs for the tests of this folder: on four processes, then on two of them.

Process 0 first computes alone, without a process group, what the processes are to agree with. Everything is
saved for the tests to read, so that the processes start once for all of them.
"""

import copy
import os
import sys
from pathlib import Path

import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk

WORLD_SIZES = (4, 2)
JOINED_BATCH_SIZE = 32

# Rows of (first halves of all processes, second halves of all processes), as the joined batch has them.
SAMPLER_LIKE = torch.arange(JOINED_BATCH_SIZE) // 2
# A class on both sides, so that the classes are dealt by their labels alone.
UNSORTED = torch.randperm(JOINED_BATCH_SIZE, generator=torch.Generator().manual_seed(0)) % 5
ONE_CLASS = torch.zeros(JOINED_BATCH_SIZE, dtype=torch.long)


def one_class_a_process(world_size):
    return torch.arange(world_size).repeat_interleave(JOINED_BATCH_SIZE // world_size)


def one_class_on_process_0(world_size):
    labels = UNSORTED.clone()
    labels[: JOINED_BATCH_SIZE // world_size] = 7
    return labels


LOSSES = {
    "contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletMarginLoss,
    "cross_batch_memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=64),
    "multiple": lambda: losses.MultipleLosses([losses.ContrastiveLoss(), losses.MultiSimilarityLoss()]),
}
# Name: (loss, λ, labels from the number of processes, with a miner).
STEPS = {
    "sampler_like": ("contrastive", 0.3, lambda _: SAMPLER_LIKE, False),
    "sampler_like_mined": ("triplet", 0.3, lambda _: SAMPLER_LIKE, True),
    "unsorted": ("contrastive", 0.3, lambda _: UNSORTED, False),
    "unsorted_mined": ("contrastive", 0.3, lambda _: UNSORTED, True),
    "cross_batch_memory": ("cross_batch_memory", 0.3, lambda _: SAMPLER_LIKE, False),
    "multiple": ("multiple", 0.3, lambda _: SAMPLER_LIKE, False),
    "only_cross_batch": ("contrastive", 1.0, lambda _: SAMPLER_LIKE, False),
    "weight_zero": ("contrastive", 0.0, lambda _: SAMPLER_LIKE, False),
    "one_class": ("contrastive", 0.3, lambda _: ONE_CLASS, False),
    "one_class_a_process": ("contrastive", 0.3, one_class_a_process, False),
    "one_class_on_process_0": ("contrastive", 0.3, one_class_on_process_0, False),
}


class Network(torch.nn.Module):
    """Trunk and embedder as one module, for one DistributedDataParallel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        self.trunk = PrototypePoolingTrunk(backbone, num_prototypes=5)
        self.embedder = torch.nn.Linear(self.trunk.num_features, 6)
        self.double()

    def forward(self, images):
        return self.embedder(self.trunk(images))


def joined_images():
    return torch.randn(
        JOINED_BATCH_SIZE, 3, 7, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1)
    )


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def alone(world_size):
    """The gradients of each step on the joined batch, in one process."""
    results = {}
    for name, (loss, weight, labels, is_mined) in STEPS.items():
        network = Network()
        criterion = CrossBatchPrototypeLoss(LOSSES[loss](), pooling=network.trunk, cross_batch_weight=weight)
        embeddings = network(joined_images())
        mined = miners.MultiSimilarityMiner()(embeddings, labels(world_size)) if is_mined else None
        criterion(embeddings, labels(world_size), mined).backward()
        results[name] = gradients(network)
    network = Network()
    network(joined_images()).square().mean().backward()
    return results | {"without_the_loss": gradients(network)}


def own_rows(name, rank, world_size):
    """Which rows of the joined batch a process has: for the sampler's steps a part of each half."""
    rows = torch.arange(JOINED_BATCH_SIZE)
    if STEPS[name][2](world_size) is SAMPLER_LIKE:
        return torch.cat([half.chunk(world_size)[rank] for half in rows.chunk(2)])
    return rows.chunk(world_size)[rank]


def together(rank, world_size, find_unused_parameters):
    """The gradients of each step on the processes; trunk and embedder are wrapped one by one, as PML's are.

    The same modules take all the steps, so that what a step leaves undone breaks the next one.
    """
    network = Network()
    trunk = DistributedDataParallel(network.trunk, find_unused_parameters=find_unused_parameters)
    embedder = DistributedDataParallel(network.embedder, find_unused_parameters=find_unused_parameters)
    results = {}
    for name, (loss, weight, labels, is_mined) in STEPS.items():
        rows = own_rows(name, rank, world_size)
        images, labels = joined_images()[rows], labels(world_size)[rows]
        criterion = CrossBatchPrototypeLoss(LOSSES[loss](), pooling=trunk, cross_batch_weight=weight)
        network.zero_grad()
        embeddings = embedder(trunk(images))
        mined = (
            DistributedMinerWrapper(miners.MultiSimilarityMiner())(embeddings, labels) if is_mined else None
        )
        DistributedLossWrapper(criterion)(embeddings, labels, mined).backward()
        results[name] = gradients(network)
        # A step that uses the histograms for nothing, and a forward that nothing follows.
        network.zero_grad()
        embedder(trunk(images)).square().mean().backward()
        results["without_the_loss"] = gradients(network)
        embedder(trunk(images))
    return results


def efficiently(rank, world_size):
    """Each step with the wrappers' `efficient=True` on a network that is wrapped as a whole, and trained."""
    network = Network()
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses_by_step = {}
    for name, (loss, weight, labels, is_mined) in STEPS.items():
        if loss in ("cross_batch_memory", "multiple"):
            continue  # neither takes the reference embeddings that an efficient wrapper gives
        rows = own_rows(name, rank, world_size)
        labels = labels(world_size)[rows]
        criterion = CrossBatchPrototypeLoss(LOSSES[loss](), pooling=network.trunk, cross_batch_weight=weight)
        miner = DistributedMinerWrapper(miners.MultiSimilarityMiner(), efficient=True)
        optimizer.zero_grad()
        embeddings = parallel(joined_images()[rows])
        mined = miner(embeddings, labels) if is_mined else None
        value = DistributedLossWrapper(criterion, efficient=True)(embeddings, labels, mined)
        value.backward()
        optimizer.step()
        losses_by_step[name] = value.detach()
    return {"losses": losses_by_step, "weights": copy.deepcopy(network.state_dict())}


SAMPLER_LABELS = torch.arange(24).repeat_interleave(9)


def sampled():
    """Two epochs of this process, and the same after an interruption, with other numbers of workers."""

    def sampler():
        return DisjointClassPairSampler(SAMPLER_LABELS, m=2, batch_size=8, length_before_new_iter=48, seed=3)

    def batches(sampler, num_workers):
        loader = DataLoader(
            range(len(SAMPLER_LABELS)), 8, sampler=sampler, drop_last=True, num_workers=num_workers
        )
        for batch in loader:
            yield batch.tolist()

    unbroken = sampler()
    epochs = [list(batches(unbroken, num_workers=0)) for _ in range(2)]

    interrupted = sampler()
    iterator = batches(interrupted, num_workers=2)
    before = [next(iterator) for _ in range(2)]
    state = interrupted.state_dict(batches_consumed=2)
    iterator.close()
    after = {}
    for num_workers in (0, 1):
        resumed = sampler()
        resumed.load_state_dict(state)
        after[num_workers] = [list(batches(resumed, num_workers)) for _ in range(2)]
    return {"epochs": epochs, "before": before, "after": after}


def main(folder):
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if rank == 0:
        torch.save({size: alone(size) for size in WORLD_SIZES}, folder / "alone.pt")
    for world_size in WORLD_SIZES:
        if rank >= world_size:
            return
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/group_of_{world_size}", rank=rank, world_size=world_size
        )
        results = {
            "together": {find: together(rank, world_size, find) for find in (False, True)},
            "efficiently": efficiently(rank, world_size),
            "sampled": sampled(),
        }
        torch.save(results, folder / f"process_{rank}_of_{world_size}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
