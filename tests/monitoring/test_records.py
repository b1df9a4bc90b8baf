import collections
import csv
import math
import os

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling, PrototypePoolingTrunk
from pml_xbml.trunks.prototype_pooling import DEAD_AFTER

LOSS = "metric_loss_CrossBatchPrototypeLoss"
TRUNK = "trunk_PrototypePoolingTrunk"
HALVES = (slice(0, 4), slice(4, 8))
STATS = {
    f"{LOSS}/{name}"
    for name in (
        "metric_loss", "cross_batch_loss", "single_class_fraction",
        "fit_r2", "transfer_r2", "condition_number",
    )
} | {
    f"{TRUNK}/{name}"
    for name in ("perplexity", "image_perplexity", "cover_radius", "lemma_gap", "dead_prototypes")
}  # fmt: skip


def mean_r2(embeddings, expressed):
    scores = [r2_score(embeddings[half], expressed[half], multioutput="variance_weighted") for half in HALVES]
    return sum(scores) / 2


def recorded_scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def record(folder, loss_funcs):
    """What a plain hook container's way of recording losses gives, by tag."""
    record_keeper, _, writer = logging_presets.get_record_keeper(str(folder / "logs"), str(folder / "events"))
    record_keeper.update_records(loss_funcs, 3, recursive_types=[torch.nn.Module, dict])
    record_keeper.save_records()
    writer.close()
    return recorded_scalars(folder / "events")


def test_every_record_of_a_run_is_there_finite_and_at_its_step(tiny_run, tmp_path):
    run = tiny_run(tmp_path, collect_stats=True, picture_interval=None)
    run.train(2)
    scalars = recorded_scalars(run.tensorboard_folder)
    assert STATS | {f"{LOSS}/cross_batch_weight"} <= set(scalars)
    for tag in STATS | {f"{LOSS}/cross_batch_weight"}:
        assert [step for step, _ in scalars[tag]] == [0, 1, 2, 3, 4, 5], tag
        assert all(math.isfinite(value) for _, value in scalars[tag]), tag
    with open(os.path.join(tmp_path, "logs", f"{LOSS}.csv")) as file:
        assert {f"{LOSS}/{name}" for name in next(csv.reader(file))} >= {tag for tag in STATS if LOSS in tag}
    table = run.record_keeper.query(f"SELECT * FROM {TRUNK}", return_dict=True)
    assert {f"{TRUNK}/{name}" for name in table} >= {tag for tag in STATS if TRUNK in tag}
    assert all(len(column) == 6 for column in table.values())


def test_nothing_appears_twice_or_without_meaning(tiny_run, tmp_path):
    run = tiny_run(tmp_path, collect_stats=True, picture_interval=None)
    run.train(1)
    scalars = recorded_scalars(run.tensorboard_folder)
    for tag, events in scalars.items():
        assert len(events) == len({step for step, _ in events}), tag
    of_plugin = {tag for tag in scalars if tag.startswith((LOSS + "/", TRUNK + "/"))}
    assert of_plugin == STATS | {f"{LOSS}/cross_batch_weight"}
    names = collections.Counter(tag.split("/")[1] for tag in scalars)
    for tag in STATS - {f"{LOSS}/metric_loss"}:
        assert names[tag.split("/")[1]] == 1, tag


def test_equals_what_is_computed_by_hand(tmp_path):
    pooling = PrototypePooling(6, num_prototypes=4, collect_stats=True)
    loss = CrossBatchPrototypeLoss(
        losses.ContrastiveLoss(), pooling=pooling, cross_batch_weight=0.3, ridge=0.2, collect_stats=True
    )
    embedder = torch.nn.Linear(6, 3)
    features, labels = torch.randn(8, 6, 2, 2), torch.arange(8) // 2
    embeddings = embedder(pooling(features))
    total = loss(embeddings, labels)

    with torch.no_grad():
        y = torch.nn.functional.normalize(embeddings.double())
        z = pooling.histograms.double()
        fits = [
            Ridge(alpha=float(0.2 * z[half].var(0, correction=0).sum())).fit(z[half], y[half])
            for half in HALVES
        ]
        means = [y[half].mean(0) for half in HALVES]
        # Deviations from the mean of the half that is fitted.
        own, expressed = (
            torch.cat(
                [
                    torch.from_numpy(fits[of].predict(z[half])) - means[of]
                    for of, half in zip(order, HALVES, strict=True)
                ]
            )
            for order in ((0, 1), (1, 0))
        )
        deviations = torch.cat([y[half] - y[half].mean(0) for half in HALVES])
        systems = [
            torch.linalg.cond(torch.cov(z[half].T, correction=0) * 4 + fit.alpha * torch.eye(4))
            for half, fit in zip(HALVES, fits, strict=True)
        ]
        expected = {
            "metric_loss": 0.7 * losses.ContrastiveLoss()(embeddings, labels),
            "cross_batch_loss": 0.3 * losses.ContrastiveLoss()(expressed.float(), labels),
            "cross_batch_weight": 0.3,
            "fit_r2": mean_r2(deviations, own),
            "transfer_r2": mean_r2(deviations, expressed),
            "condition_number": max(systems),
            "single_class_fraction": 0,
        }
        share = pooling.histograms
        expected_of_pooling = {
            "perplexity": torch.exp(-(share.mean(0) * share.mean(0).log()).sum()),
            "image_perplexity": torch.exp(-(share * share.log()).sum(1)).mean(),
            "dead_prototypes": 0,
        }
    assert loss.metric_loss + loss.cross_batch_loss == pytest.approx(total.item())
    scalars = record(tmp_path, {"metric_loss": loss})
    for name, value in expected.items():
        assert scalars[f"{LOSS}/{name}"] == [(3, pytest.approx(float(value), rel=1e-4))], name
    for name, value in expected_of_pooling.items():
        assert float(getattr(pooling, name)) == pytest.approx(float(value), rel=1e-5), name


def test_share_of_batches_without_two_classes():
    loss = CrossBatchPrototypeLoss(collect_stats=True)
    for labels in ([0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 0, 1], [3, 3, 3, 3]):
        loss(torch.randn(4, 3), torch.tensor(labels))
    assert loss.single_class_fraction == 0.5


def test_idle_prototypes():
    pooling = PrototypePooling(2, num_prototypes=2, collect_stats=True)
    pooling.prototypes.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    only_the_first = torch.tensor([1.0, 0.1]).view(1, 2, 1, 1)
    for _ in range(DEAD_AFTER - 1):
        pooling(only_the_first)
    assert pooling.dead_prototypes == 0
    pooling(only_the_first)
    assert pooling.dead_prototypes == 1
    pooling(only_the_first.flip(1))
    assert pooling.dead_prototypes == 0


def test_two_cross_batch_losses_do_not_collide(tmp_path):
    def loss(weight):
        return CrossBatchPrototypeLoss(cross_batch_weight=weight, collect_stats=True)

    scalars = record(tmp_path, {"metric_loss": losses.MultipleLosses({"near": loss(0.1), "far": loss(0.2)})})
    of_plugin = {tag: events for tag, events in scalars.items() if "CrossBatchPrototypeLoss/" in tag}
    assert len(of_plugin) == 2 * (1 + sum(LOSS in tag for tag in STATS))
    assert all(len(events) == 1 for events in of_plugin.values())
    weights = [events[0][1] for tag, events in of_plugin.items() if tag.endswith("/cross_batch_weight")]
    assert sorted(weights) == pytest.approx([0.1, 0.2])


def test_records_are_off_by_default_and_follow_pmls_switch(monkeypatch):
    assert not hasattr(CrossBatchPrototypeLoss(), "fit_r2")
    assert not hasattr(PrototypePooling(4), "perplexity")
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)
    assert "fit_r2" in CrossBatchPrototypeLoss()._record_these_stats
    assert "perplexity" in PrototypePooling(4)._record_these_stats


def operations_of_a_step(collect_stats):
    trunk = PrototypePoolingTrunk(torch.nn.Conv2d(3, 6, 3), num_prototypes=4, collect_stats=collect_stats)
    loss = CrossBatchPrototypeLoss(pooling=trunk, collect_stats=collect_stats)
    images, labels = torch.randn(8, 3, 5, 5), torch.arange(8) // 2
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        loss(trunk(images), labels).backward()
    return collections.Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))


def operations_without_records(monkeypatch):
    """The same step by the method's functions and ℓ, where nothing could be recorded."""
    monkeypatch.setattr(PrototypePooling, "_collect_stats", None)
    monkeypatch.setattr("pml_xbml.losses.cross_batch_prototype_loss.expression_statistics", None)
    return operations_of_a_step(collect_stats=False)


def test_without_collect_stats_the_step_does_no_extra_work(monkeypatch):
    off, on = operations_of_a_step(False), operations_of_a_step(True)
    assert on.total() > off.total()
    assert operations_without_records(monkeypatch) == off
