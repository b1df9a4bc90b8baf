"""Plain PyTorch: mixed precision, gradient clipping, and a run that goes on after it was killed.

    python -m pml_xbml.examples.plain_pytorch

It trains a small network on Glyphs, prints MAP@R on validation classes, and keeps plain_pytorch.pt. The same
command goes on from that file; what it prints is then what an unbroken run prints.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from pml_xbml.datasets import Glyphs
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairBatchSampler
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bfloat16 has the range of float32; float16 needs the scaler.
AUTOCAST: Any = {"device_type": DEVICE, "dtype": torch.float16 if DEVICE == "cuda" else torch.bfloat16}
TO_TENSOR = transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()])
AUGMENT = transforms.RandomAffine(degrees=5, translate=(0.05, 0.05))


def glyphs_of(
    is_chosen: Callable[[int], bool], transform: Callable[[Any], Any]
) -> tuple[Subset[Any], list[int]]:
    """The images of the training characters whose label is chosen, and their labels."""
    glyphs = Glyphs("train", transform)
    indices = [index for index, label in enumerate(glyphs.labels) if is_chosen(label)]
    return Subset(glyphs, indices), [glyphs.labels[index] for index in indices]


def validate(network: torch.nn.Module) -> float:
    """MAP@R among characters that are not trained on."""
    images, _ = glyphs_of(lambda label: label >= 400, TO_TENSOR)
    network.eval()
    with torch.inference_mode(), torch.autocast(**AUTOCAST):
        batches = [(network(batch.to(DEVICE)), labels) for batch, labels in DataLoader(images, 256)]
    network.train()
    embeddings, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    accuracy: dict[str, float] = calculator.get_accuracy(embeddings.float().cpu(), labels)
    return accuracy["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="steps to take")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--checkpoint", default="plain_pytorch.pt", help="file to write and to go on from")
    options = parser.parse_args()

    torch.manual_seed(0)
    training_set, labels = glyphs_of(lambda label: label < 400, transforms.Compose([AUGMENT, TO_TENSOR]))
    trunk = PrototypePoolingTrunk(SmallTrunk())
    network = torch.nn.Sequential(trunk, torch.nn.Linear(trunk.num_features, 128)).to(DEVICE)
    loss = CrossBatchPrototypeLoss(pml_losses.ContrastiveLoss(), pooling=trunk)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")
    sampler = DisjointClassPairBatchSampler(labels, 4, 32, num_batches=options.iterations, seed=0)
    # The loader draws a seed for its workers; from its own generator, it leaves the augmentation's alone.
    loader = DataLoader(training_set, batch_sampler=sampler, generator=torch.Generator())

    has_state: dict[str, Any] = {
        "network": network,
        "optimizer": optimizer,
        "scaler": scaler,
        "sampler": sampler,
    }
    iteration = 0
    if os.path.exists(options.checkpoint):
        state = torch.load(options.checkpoint, weights_only=True)
        for name, holder in has_state.items():
            holder.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        iteration = state["iteration"]
    else:
        chosen = torch.randperm(len(training_set))[:256].tolist()
        trunk.init_prototypes(torch.stack([training_set[index][0] for index in chosen]).to(DEVICE))
        print(f"untrained: validation MAP@R {validate(network):.4f}", flush=True)

    # After a checkpoint the sampler gives the batches that are left.
    for images, batch_labels in loader:
        with torch.autocast(**AUTOCAST):
            value = loss(network(images.to(DEVICE)), batch_labels.to(DEVICE))
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm=1)
        scaler.step(optimizer)
        scaler.update()
        iteration += 1
        if iteration % options.save_every == 0 or iteration == options.iterations:
            state = {name: holder.state_dict() for name, holder in has_state.items()}
            state |= {"random": torch.get_rng_state(), "iteration": iteration}
            torch.save(state, f"{options.checkpoint}.new")
            os.replace(f"{options.checkpoint}.new", options.checkpoint)  # never half a file
            print(f"iteration {iteration}: loss {value.item():.4f}", flush=True)
    print(f"iteration {iteration}: validation MAP@R {validate(network):.4f}")


if __name__ == "__main__":
    main()
