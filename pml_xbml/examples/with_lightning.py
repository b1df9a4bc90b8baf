"""PyTorch Lightning: two processes, checkpoints within an epoch, validation in Lightning's own loop.

    python -m pml_xbml.examples.with_lightning

It needs ``pip install lightning torchdata``.
It trains a small network on Glyphs, prints MAP@R on validation classes, and keeps checkpoints in the folder
lightning_example. The same command goes on from the last one; what it prints is then what an unbroken run
prints.
"""

import argparse
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision import transforms

from pml_xbml.datasets import Glyphs
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk

BATCH_SIZE = 16  # of each process
TO_TENSOR = transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()])


def glyphs_of(is_chosen: Callable[[int], bool]) -> tuple[Subset[Any], list[int]]:
    """The images of the training characters whose label is chosen, and their labels."""
    glyphs = Glyphs("train", TO_TENSOR)
    indices = [index for index, label in enumerate(glyphs.labels) if is_chosen(label)]
    return Subset(glyphs, indices), [glyphs.labels[index] for index in indices]


class MetricLearner(lightning.LightningModule):
    """A network that is trained with the cross-batch loss, and the data that it is trained on."""

    def __init__(self, iterations: int, processes: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.training_set, self.labels = glyphs_of(lambda label: label < 400)
        self.validation_set, _ = glyphs_of(lambda label: label >= 400)
        trunk = PrototypePoolingTrunk(SmallTrunk())
        self.network = torch.nn.Sequential(trunk, torch.nn.Linear(trunk.num_features, 128))
        chosen = torch.randperm(len(self.training_set))[:256].tolist()
        trunk.init_prototypes(torch.stack([self.training_set[index][0] for index in chosen]))
        loss = CrossBatchPrototypeLoss(pml_losses.ContrastiveLoss(), pooling=trunk)
        # The loss of the batches of all processes together.
        self.loss = DistributedLossWrapper(loss) if processes > 1 else loss
        self.validated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def train_dataloader(self) -> StatefulDataLoader[Any]:
        # Made here, the sampler knows the process group; the loader's state holds the sampler's position.
        length = self.iterations * BATCH_SIZE
        sampler = DisjointClassPairSampler(self.labels, 4, BATCH_SIZE, length, seed=0)
        return StatefulDataLoader(self.training_set, BATCH_SIZE, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.validation_set, 256)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> Any:
        images, labels = batch
        return self.loss(self.network(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        images, labels = batch
        self.validated.append((self.network(images).cpu(), labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        embeddings, labels = (torch.cat(parts) for parts in zip(*self.validated, strict=True))
        self.validated.clear()
        calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
        accuracy = calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]
        self.log("validation_map_at_r", accuracy, sync_dist=True)
        self.print(f"iteration {self.global_step}: validation MAP@R {accuracy:.4f}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="steps to take")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--folder", default="lightning_example", help="where the checkpoints are")
    parser.add_argument("--processes", type=int, default=2, help="processes that train together")
    options = parser.parse_args()

    lightning.seed_everything(0)
    every = options.save_every
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.device_count() >= options.processes else "cpu",
        devices=options.processes,
        strategy="ddp" if options.processes > 1 else "auto",
        use_distributed_sampler=False,  # each process validates on all images
        max_steps=options.iterations,
        gradient_clip_val=1,
        callbacks=[ModelCheckpoint(options.folder, every_n_train_steps=every, save_last=True)],
        num_sanity_val_steps=-1,  # validates the untrained network
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = MetricLearner(options.iterations, options.processes)
    trainer.fit(model, ckpt_path="last")  # begins anew where there is none


if __name__ == "__main__":
    main()
