import os
import random

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners, samplers, testers, trainers
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.monitoring import PrototypeHookContainer, get_record_keeper
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk

CPU = torch.device("cpu")
SIZES = {"m": 2, "batch_size": 8, "length_before_new_iter": 32}


class NoisyColors(torch.utils.data.Dataset):
    """Small images, a color a class, with noise from all generators, as random augmentations draw it."""

    def __init__(self, num_classes=6, samples_per_class=6):
        self.labels = np.repeat(np.arange(num_classes), samples_per_class)
        self.colors = torch.rand(num_classes, 3, 1, 1, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = int(self.labels[index])
        noise = torch.randn(3, 6, 6) + random.gauss(0, 1) + np.random.standard_normal()  # noqa: NPY002
        return self.colors[label] + 0.1 * noise, label


class TinyRun:
    """A small training run that carries every kind of state, in a folder of its own.

    Args:
        folder: Where its models, records and events go.
        uses_plugin: Whether trunk, loss and sampler are the plugin's, or PML's.
        sampler_seed: The plugin's sampler's.
        num_workers: How many workers the loader has.
        patience: As PML's hook has it.
        collect_stats: Whether loss and pooling compute their records.
        short_tags: Whether TensorBoard gets the package's short names, or PML's.
        **hook_options: PrototypeHookContainer's.
    """

    def __init__(
        self,
        folder,
        uses_plugin=True,
        sampler_seed=None,
        num_workers=0,
        patience=None,
        collect_stats=False,
        short_tags=False,
        **hook_options,
    ):
        self.model_folder = os.path.join(folder, "saved_models")
        self.tensorboard_folder = os.path.join(folder, "tensorboard")
        folders = os.path.join(folder, "logs"), self.tensorboard_folder
        if short_tags:
            self.record_keeper = get_record_keeper(*folders)
        else:
            self.record_keeper, _, _ = logging_presets.get_record_keeper(*folders)
        self.writer = self.record_keeper.tensorboard_writer
        self.seed(0)
        self.dataset = NoisyColors()
        self.trunk = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3)
        )
        self.loss = losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, memory_size=20)
        if uses_plugin:
            self.trunk = PrototypePoolingTrunk(self.trunk, num_prototypes=5, collect_stats=collect_stats)
            self.loss = CrossBatchPrototypeLoss(self.loss, pooling=self.trunk, collect_stats=collect_stats)
            self.sampler = DisjointClassPairSampler(self.dataset.labels, seed=sampler_seed, **SIZES)
        else:
            self.trunk.extend([torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()])
            self.sampler = samplers.MPerClassSampler(self.dataset.labels, **SIZES)
        self.embedder = torch.nn.Linear(8, 4)
        optimizers = {
            "trunk_optimizer": torch.optim.Adam(self.trunk.parameters(), lr=0.01),
            "embedder_optimizer": torch.optim.SGD(self.embedder.parameters(), lr=0.01, momentum=0.9),
        }
        self.hooks = PrototypeHookContainer(
            self.record_keeper, primary_metric="precision_at_1", log_freq=1, **hook_options
        )
        self.tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=self.hooks.end_of_testing_hook,
            accuracy_calculator=AccuracyCalculator(include=("precision_at_1",), device=CPU),
            dataloader_num_workers=0,
            data_device=CPU,
        )
        self.trainer = trainers.MetricLossOnly(
            {"trunk": self.trunk, "embedder": self.embedder},
            optimizers,
            batch_size=SIZES["batch_size"],
            loss_funcs={"metric_loss": self.loss},
            mining_funcs={"tuple_miner": miners.BatchHardMiner()},
            dataset=self.dataset,
            sampler=self.sampler,
            iterations_per_epoch=3,
            lr_schedulers={
                "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.MultiStepLR(
                    optimizers["trunk_optimizer"], [5, 20], gamma=0.7
                ),
                "embedder_scheduler_by_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(
                    optimizers["embedder_optimizer"], mode="max", patience=2
                ),
            },
            data_device=CPU,
            dataloader_num_workers=num_workers,
            end_of_iteration_hook=self.hooks.end_of_iteration_hook,
            end_of_epoch_hook=self.hooks.end_of_epoch_hook(
                self.tester, {"val": self.dataset}, self.model_folder, patience=patience
            ),
        )

    @staticmethod
    def seed(seed):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  pytorch-metric-learning draws from the global generator
        torch.manual_seed(seed)

    def train(self, num_epochs):
        """Trains up to and including epoch ``num_epochs``, from wherever the folder's run has come to."""
        self.trainer.train(self.hooks.resume(self.trainer, self.model_folder), num_epochs)
        self.record_keeper.save_records()
        self.writer.close()


@pytest.fixture(scope="session")
def tiny_run():
    return TinyRun
