import os
import random

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners, samplers, testers, trainers
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_xbml.monitoring import PrototypeHookContainer


class NoisyClusters(torch.utils.data.Dataset):
    """Points around class centers, with noise from all generators, as random augmentations have it."""

    def __init__(self, num_classes=6, samples_per_class=6):
        self.labels = np.repeat(np.arange(num_classes), samples_per_class)
        self.centers = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = int(self.labels[index])
        noise = torch.randn(8) + random.gauss(0, 1) + np.random.standard_normal()  # noqa: NPY002
        return self.centers[label] + 0.3 * noise, label


class TinyRun:
    """A small training run that carries every kind of state, in a folder of its own.

    Args:
        folder: Where its models, records and events go.
        num_workers: How many workers the loader has.
    """

    def __init__(self, folder, num_workers=0, patience=None, **hook_options):
        self.model_folder = os.path.join(folder, "saved_models")
        self.tensorboard_folder = os.path.join(folder, "tensorboard")
        self.record_keeper, _, self.writer = logging_presets.get_record_keeper(
            os.path.join(folder, "logs"), self.tensorboard_folder
        )
        self.seed(0)
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3)
        )
        self.embedder = torch.nn.Linear(16, 4)
        optimizers = {
            "trunk_optimizer": torch.optim.Adam(self.trunk.parameters(), lr=0.01),
            "embedder_optimizer": torch.optim.SGD(self.embedder.parameters(), lr=0.01, momentum=0.9),
        }
        dataset = NoisyClusters()
        self.hooks = PrototypeHookContainer(
            self.record_keeper, primary_metric="precision_at_1", log_freq=1, **hook_options
        )
        tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=self.hooks.end_of_testing_hook,
            accuracy_calculator=AccuracyCalculator(include=("precision_at_1",), device=torch.device("cpu")),
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
        )
        self.trainer = trainers.MetricLossOnly(
            {"trunk": self.trunk, "embedder": self.embedder},
            optimizers,
            batch_size=8,
            loss_funcs={"metric_loss": losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, memory_size=20)},
            mining_funcs={"tuple_miner": miners.BatchHardMiner()},
            dataset=dataset,
            sampler=samplers.MPerClassSampler(dataset.labels, m=2, batch_size=8, length_before_new_iter=32),
            iterations_per_epoch=3,
            lr_schedulers={
                "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.MultiStepLR(
                    optimizers["trunk_optimizer"], [5, 20], gamma=0.7
                ),
                "embedder_scheduler_by_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(
                    optimizers["embedder_optimizer"], mode="max", patience=2
                ),
            },
            data_device=torch.device("cpu"),
            dataloader_num_workers=num_workers,
            end_of_iteration_hook=self.hooks.end_of_iteration_hook,
            end_of_epoch_hook=self.hooks.end_of_epoch_hook(
                tester, {"val": dataset}, self.model_folder, patience=patience
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


@pytest.fixture
def tiny_run():
    return TinyRun
