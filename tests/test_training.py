"""The plugin inside pytorch-metric-learning's trainers, testers and hooks."""

import copy

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners, testers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from record_keeper import RecordKeeper
from torch import nn

from pml_xbml import losses, samplers, trunks

NUM_CLASSES, PER_CLASS = 12, 8
LABELS = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)


def images():
    """Noise around a color a class."""
    generator = torch.Generator().manual_seed(5)
    colors = torch.randn(NUM_CLASSES, 3, 1, 1, generator=generator)
    return colors[LABELS] + 0.5 * torch.randn(len(LABELS), 3, 8, 8, generator=generator)


def backbone():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def embedder(embedding_size=8):
    torch.manual_seed(4)
    return nn.Linear(24, embedding_size)


class Losses(list):
    """An end-of-iteration hook that keeps the total loss of every step."""

    def __call__(self, trainer):
        self.append(trainer.losses["total_loss"].item())

    def falls(self):
        # A CrossBatchMemory of 64 is full after 4 steps; its loss rises until then.
        return sum(self[-10:]) < 0.9 * sum(self[4:14])


def trainer(trainer_class, trunk, loss_funcs, history=None, models=None, **kwargs):
    models = {"trunk": trunk, "embedder": embedder()} | (models or {})
    optimizers = {
        f"{name}_optimizer": torch.optim.Adam(module.parameters(), lr=3e-3)
        for name, module in (models | loss_funcs).items()
        if list(module.parameters())
    }
    return trainer_class(
        models=models,
        optimizers=optimizers,
        batch_size=16,
        loss_funcs=loss_funcs,
        dataset=torch.utils.data.TensorDataset(images(), LABELS),
        sampler=samplers.DisjointClassPairSampler(LABELS, m=2, batch_size=16, seed=1),
        dataloader_num_workers=0,
        iterations_per_epoch=kwargs.pop("iterations_per_epoch", 80),
        end_of_iteration_hook=Losses() if history is None else history,
        **kwargs,
    )


class TestTrainersOfPML:
    @pytest.mark.parametrize(
        "make_base",
        [
            pml_losses.ContrastiveLoss,
            lambda: pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), 8, memory_size=64),
            lambda: pml_losses.ProxyAnchorLoss(NUM_CLASSES, 8),
        ],
        ids=["pairs", "memory", "proxies"],
    )
    def test_metric_loss_only(self, make_base):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
        trunk.init_prototypes(images())
        start = trunk.prototypes.detach().clone()
        loss = losses.CrossBatchPrototypeLoss(make_base(), pooling=trunk, cross_batch_weight=0.1)
        history = Losses()
        trainer(trainers.MetricLossOnly, trunk, {"metric_loss": loss}, history).train()
        assert history.falls()
        assert not torch.equal(trunk.prototypes, start)

    def test_train_with_classifier_and_miners(self):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
        history = Losses()
        trainer(
            trainers.TrainWithClassifier,
            trunk,
            {
                "metric_loss": losses.CrossBatchPrototypeLoss(pml_losses.TripletMarginLoss(), pooling=trunk),
                "classifier_loss": nn.CrossEntropyLoss(),
            },
            history,
            models={"classifier": nn.Linear(8, NUM_CLASSES)},
            mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
            loss_weights={"metric_loss": 1, "classifier_loss": 0.5},
        ).train()
        assert history.falls()

    def test_subset_batch_miner_runs_the_trunk_in_evaluation_mode_before(self):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
        history = Losses()

        class FirstDozen(nn.Module):
            def forward(self, embeddings, labels):
                return torch.arange(12)

        trainer(
            trainers.MetricLossOnly,
            trunk,
            {"metric_loss": losses.CrossBatchPrototypeLoss(pooling=trunk)},
            history,
            mining_funcs={"subset_batch_miner": FirstDozen()},
            iterations_per_epoch=3,
        ).train()
        assert len(history) == 3

    def test_cascaded_embeddings_share_the_histograms(self):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
        history = Losses()
        trainer(
            trainers.CascadedEmbeddings,
            trunk,
            {
                "metric_loss_0": losses.CrossBatchPrototypeLoss(pml_losses.ContrastiveLoss(), pooling=trunk),
                "metric_loss_1": losses.CrossBatchPrototypeLoss(
                    pml_losses.TripletMarginLoss(), pooling=trunk
                ),
            },
            history,
            embedding_sizes=[4, 4],
        ).train()
        assert history.falls()

    def test_two_streams_are_refused(self):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)

        class Pairs(torch.utils.data.Dataset):
            def __len__(self):
                return len(LABELS)

            def __getitem__(self, index):
                return images()[index], images()[index], LABELS[index]

        two_streams = trainers.TwoStreamMetricLoss(
            models={"trunk": trunk},
            optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters())},
            batch_size=8,
            loss_funcs={"metric_loss": losses.CrossBatchPrototypeLoss(pml_losses.TripletMarginLoss(), trunk)},
            dataset=Pairs(),
            dataloader_num_workers=0,
        )
        with pytest.raises(ValueError, match="TwoStreamMetricLoss"):
            two_streams.train()

    def test_frozen_trunk(self):
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6, eval_histograms=True)
        before = copy.deepcopy(trunk.state_dict())
        history = Losses()
        loss = losses.CrossBatchPrototypeLoss(pooling=trunk)
        trainer(
            trainers.MetricLossOnly, trunk, {"metric_loss": loss}, history, freeze_these=["trunk"]
        ).train()
        assert history.falls()
        for name, value in trunk.state_dict().items():
            assert torch.equal(value, before[name])


def test_weight_zero_trains_as_if_the_plugin_were_absent():
    plain, wrapped = backbone(), trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
    for trunk, loss in (
        (plain, pml_losses.MultiSimilarityLoss()),
        (
            wrapped,
            losses.CrossBatchPrototypeLoss(pml_losses.MultiSimilarityLoss(), wrapped, cross_batch_weight=0),
        ),
    ):
        torch.manual_seed(7)
        trainer(trainers.MetricLossOnly, trunk, {"metric_loss": loss}, iterations_per_epoch=15).train()
    unwrapped = wrapped.unwrap().state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, unwrapped[name]), name


def test_a_run_saved_by_a_plain_hook_container_is_loaded_with_everything(tmp_path):
    def build():
        trunk = trunks.PrototypePoolingTrunk(backbone(), num_prototypes=6)
        loss = losses.CrossBatchPrototypeLoss(pml_losses.ProxyAnchorLoss(NUM_CLASSES, 8), pooling=trunk)
        return trainer(trainers.MetricLossOnly, trunk, {"metric_loss": loss}, iterations_per_epoch=5)

    record_keeper, _, _ = logging_presets.get_record_keeper(
        str(tmp_path / "csv"), str(tmp_path / "tensorboard")
    )
    hooks = logging_presets.HookContainer(record_keeper, log_freq=1)
    tester = testers.GlobalEmbeddingSpaceTester(
        end_of_testing_hook=hooks.end_of_testing_hook,
        accuracy_calculator=AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count"),
        dataloader_num_workers=0,
    )
    dataset = torch.utils.data.TensorDataset(images(), LABELS)
    saved = build()
    saved.end_of_iteration_hook = hooks.end_of_iteration_hook
    saved.end_of_epoch_hook = hooks.end_of_epoch_hook(tester, {"val": dataset}, str(tmp_path / "models"))
    saved.train(num_epochs=2)

    loaded = build()
    assert hooks.load_latest_saved_models(loaded, str(tmp_path / "models"), torch.device("cpu")) == 3
    for kind in ("models", "loss_funcs", "optimizers"):
        for name, original in getattr(saved, kind).items():
            torch.testing.assert_close(
                getattr(loaded, kind)[name].state_dict(), original.state_dict(), rtol=0, atol=0
            )
    assert set(loaded.loss_funcs["metric_loss"].state_dict()) == {"loss.proxies"}


class RecordedNames(RecordKeeper):
    def __init__(self):
        super().__init__(attributes_to_search_for=c_f.list_of_recordable_attributes_list_names())
        self.names = []

    def append_data(self, group_name, series_name, value, iteration):
        self.names.append((group_name, series_name))


@pytest.mark.parametrize("collect_stats", [False, True])
def test_a_recursive_record_keeper_meets_every_record_exactly_once(collect_stats):
    pooling = trunks.PrototypePooling(8, 5)
    base = pml_losses.TripletMarginLoss(collect_stats=collect_stats)
    loss = losses.CrossBatchPrototypeLoss(base, pooling=pooling, collect_stats=collect_stats)
    loss(pooling(torch.randn(16, 8, 3, 3)), torch.arange(16) // 4)
    keeper = RecordedNames()
    keeper.update_records({"metric_loss": loss}, 1, recursive_types=[nn.Module, dict])
    assert len(keeper.names) == len(set(keeper.names))
    expected = set(getattr(loss, "_record_these", [])) | set(getattr(loss, "_record_these_stats", []))
    own = {series for group, series in keeper.names if group == "metric_loss_CrossBatchPrototypeLoss"}
    assert own == expected
    assert not any("pooling" in group.lower() for group, _ in keeper.names)
    margins = [name for name in keeper.names if name[1] == "margin"]
    assert len(margins) == 1
