"""Hugging Face Accelerate: one process or several, and a run that goes on after it was killed.

    torchrun --nproc-per-node 2 -m pml_xbml.examples.with_accelerate

It needs ``pip install accelerate``.
It trains a small network on Glyphs, prints MAP@R on validation classes, and keeps checkpoints in the folder
accelerate_example. The same command goes on from the last one; what it prints is then what an unbroken run
prints. ``python -m pml_xbml.examples.with_accelerate`` trains in one process.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from pml_xbml.datasets import Glyphs
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairBatchSampler
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk

BATCH_SIZE = 16  # of each process
TO_TENSOR = transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()])


def glyphs_of(is_chosen: Callable[[int], bool]) -> tuple[Subset[Any], list[int]]:
    """The images of the training characters whose label is chosen, and their labels."""
    glyphs = Glyphs("train", TO_TENSOR)
    indices = [index for index, label in enumerate(glyphs.labels) if is_chosen(label)]
    return Subset(glyphs, indices), [glyphs.labels[index] for index in indices]


def validate(accelerator: Accelerator, network: torch.nn.Module, loader: Any) -> float:
    """MAP@R among characters that are not trained on; each process embeds its part of them."""
    network.eval()
    with torch.inference_mode():
        # Accelerate repeats images to give all processes as many; these are dropped again.
        batches = [accelerator.gather_for_metrics((network(images), labels)) for images, labels in loader]
    network.train()
    embeddings, labels = (torch.cat(parts).float().cpu() for parts in zip(*batches, strict=True))
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    accuracy: dict[str, float] = calculator.get_accuracy(embeddings, labels.long())
    return accuracy["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="steps to take")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--folder", type=Path, default="accelerate_example", help="where the checkpoints are")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0)
    training_set, labels = glyphs_of(lambda label: label < 400)
    trunk = PrototypePoolingTrunk(SmallTrunk())
    chosen = torch.randperm(len(training_set))[:256].tolist()
    trunk.init_prototypes(torch.stack([training_set[index][0] for index in chosen]))
    network: Any = torch.nn.Sequential(trunk, torch.nn.Linear(trunk.num_features, 128))
    loss: torch.nn.Module = CrossBatchPrototypeLoss(pml_losses.ContrastiveLoss(), pooling=trunk)
    if accelerator.num_processes > 1:
        loss = DistributedLossWrapper(loss)  # that of the batches of all processes together
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    # Made after the Accelerator, the sampler knows how many processes there are. Its loader is not prepared:
    # it gives each process its own batches already.
    sampler = DisjointClassPairBatchSampler(labels, 4, BATCH_SIZE, num_batches=options.iterations, seed=0)
    loader = DataLoader(training_set, batch_sampler=sampler)
    validation_loader = DataLoader(glyphs_of(lambda label: label >= 400)[0], 128)
    network, optimizer, validation_loader = accelerator.prepare(network, optimizer, validation_loader)
    accelerator.register_for_checkpointing(sampler)

    iteration = 0
    if checkpoints := sorted(options.folder.glob("iteration_*")):
        accelerator.load_state(str(checkpoints[-1]))
        iteration = int(checkpoints[-1].name.removeprefix("iteration_"))
    else:
        accelerator.print(
            f"untrained: validation MAP@R {validate(accelerator, network, validation_loader):.4f}"
        )

    # After a checkpoint the sampler gives the batches that are left.
    for images, batch_labels in loader:
        embeddings = network(images.to(accelerator.device))
        value = loss(embeddings, batch_labels.to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(network.parameters(), max_norm=1)
        optimizer.step()
        iteration += 1
        if iteration % options.save_every == 0 or iteration == options.iterations:
            accelerator.save_state(str(options.folder / "unfinished"))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:  # what has a number is whole
                (options.folder / "unfinished").rename(options.folder / f"iteration_{iteration:06d}")
            accelerator.print(f"iteration {iteration}: loss {value.item():.4f}", flush=True)
    accuracy = validate(accelerator, network, validation_loader)
    accelerator.print(f"iteration {iteration}: validation MAP@R {accuracy:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
