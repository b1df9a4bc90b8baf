"""What `torchrun` runs on two processes for test_processes.py: the sampler under Lightning and Accelerate.

Each process writes, for every way to give a sampler to a framework, the indices of its batches or the error.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import lightning
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, TensorDataset

from pml_xbml.samplers import DisjointClassPairBatchSampler, DisjointClassPairSampler

LABELS = torch.arange(140) // 7
M, BATCH_SIZE, NUM_BATCHES, SEED = 2, 12, 4, 0
DATASET = TensorDataset(torch.arange(140))


def loader_of(kind, batch_size=BATCH_SIZE, num_workers=0, **replica):
    if kind == "batch_sampler":
        sampler = DisjointClassPairBatchSampler(LABELS, M, batch_size, NUM_BATCHES, SEED, **replica)
        return DataLoader(DATASET, batch_sampler=sampler, num_workers=num_workers)
    length = NUM_BATCHES * batch_size
    sampler = DisjointClassPairSampler(LABELS, M, batch_size, length, SEED, **replica)
    return DataLoader(DATASET, batch_size, sampler=sampler, drop_last=True, num_workers=num_workers)


class Recorder(lightning.LightningModule):
    """Writes down what it is given to train on."""

    def __init__(self, make_loader):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.make_loader = make_loader
        self.batches = []

    def train_dataloader(self):
        return self.make_loader()

    def training_step(self, batch):
        self.batches.append(batch[0].tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning_batches(kind, made_in_hook=True, **options):
    loader = None if made_in_hook else loader_of(kind)
    module = Recorder(lambda: loader_of(kind))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader)
    return module.batches


def accelerate_batches(
    kind, is_prepared, batch_size=BATCH_SIZE, replica=None, num_workers=0, **configuration
):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**configuration))
    loader = loader_of(kind, batch_size, num_workers, **(replica or {}))
    if is_prepared:
        loader = accelerator.prepare(loader)
    return [indices.tolist() for _ in range(2) for (indices,) in loader]


WHOLE = {"replica": {"num_replicas": 1}, "batch_size": 2 * BATCH_SIZE, "split_batches": True}
CASES = {
    "lightning, made before the group": lambda kind: lightning_batches(kind, made_in_hook=False),
    "lightning": lightning_batches,
    "lightning, switched off": lambda kind: lightning_batches(kind, use_distributed_sampler=False),
    "not prepared": lambda kind: accelerate_batches(kind, False, num_workers=1),
    "prepared": lambda kind: accelerate_batches(kind, True, num_workers=1),
    "prepared, split": lambda kind: accelerate_batches(kind, True, split_batches=True),
    "prepared, uneven": lambda kind: accelerate_batches(kind, True, even_batches=False),
    "prepared, one replica": lambda kind: accelerate_batches(kind, True, replica={"num_replicas": 1}),
    "prepared, stateful": lambda kind: accelerate_batches(kind, True, use_stateful_dataloader=True),
    "whole": lambda kind: accelerate_batches(kind, True, **WHOLE),
    "whole, cut in a class": lambda kind: accelerate_batches(kind, True, **(WHOLE | {"batch_size": 12})),
    "whole, dispatched": lambda kind: accelerate_batches(kind, True, dispatch_batches=True, **WHOLE),
}


def main(folder):
    results = {kind: {} for kind in ("sampler", "batch_sampler")}
    for kind, name in itertools.product(results, CASES):
        try:
            results[kind][name] = CASES[name](kind)
        except (TypeError, ValueError) as error:
            results[kind][name] = f"{type(error).__name__}: {error}"
    # Process 0 alone reads for both, and the other one would wait for it.
    if os.environ["RANK"] == "0":
        try:
            accelerate_batches("sampler", True, dispatch_batches=True)
        except ValueError as error:
            results["sampler"]["dispatched"] = str(error)
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
