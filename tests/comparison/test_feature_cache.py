import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest
import torch

from pml_xbml.comparison import run_all, train
from pml_xbml.comparison.feature_cache import _copies, cached_splits
from pml_xbml.comparison.frozen_stages import FrozenStages
from pml_xbml.comparison.models import build_models, splits_of
from pml_xbml.comparison.run_all import _prepare_frozen_stages
from pml_xbml.samplers import DisjointClassPairSampler

COPIES = 3


@pytest.fixture
def frozen_run(tiny_run):
    return dataclasses.replace(
        tiny_run, trunk="mobilenet_v3_small", image_size=32, freeze="features.6", copies=COPIES
    )


@pytest.fixture
def stages(frozen_run):
    trunk, _ = build_models(frozen_run, torch.device("cpu"))
    return FrozenStages(trunk, frozen_run.freeze, 32)


@pytest.fixture
def splits(frozen_run):
    return splits_of(frozen_run)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".npy", ".json")}


def test_the_files_hold_the_activations_in_half_precision(stages, splits, tmp_path):
    cached = cached_splits(stages, splits, COPIES, tmp_path)
    assert (cached.train.labels, cached.train.classes) == (splits.train.labels, splits.train.classes)
    for index in (0, 5):
        image, label = splits.val[index]
        activation, cached_label = cached.val[index]
        assert label == cached_label
        assert activation.dtype == torch.float16
        torch.testing.assert_close(
            activation.float(), stages.compute(image.unsqueeze(0))[0], rtol=2e-3, atol=2e-3
        )
    visits = torch.stack([cached.train[0][0] for _ in range(30)])
    assert len(visits.unique(dim=0)) == COPIES


def test_copies_are_drawn_by_the_seed_and_batches_are_gathered(stages, splits, tmp_path):
    cached = cached_splits(stages, splits, COPIES, tmp_path).train
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(cached.__getitems__([3, 1, 3]))
    assert [label for _, label in draws[0]] == [cached.labels[index] for index in (3, 1, 3)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize("after", [1, 3, 9])
def test_killed_while_it_is_made_it_goes_on_where_it_was(stages, splits, tmp_path, monkeypatch, after):
    cached_splits(stages, splits, COPIES, tmp_path / "unbroken")
    monkeypatch.setattr("pml_xbml.comparison.feature_cache._IMAGES_PER_RUN", 2 * COPIES)
    compute, calls = FrozenStages.compute, []

    def killed(self, images):
        calls.append(len(images))
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return compute(self, images)

    monkeypatch.setattr(FrozenStages, "compute", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_splits(stages, splits, COPIES, tmp_path / "broken")
    assert not list((tmp_path / "broken").rglob("settings.json"))
    cached_splits(stages, splits, COPIES, tmp_path / "broken")
    made = sum(calls)
    images = COPIES * len(splits.train) + len(splits.val) + len(splits.test["test"])
    # An example for the shape each time, and the batch that was lost.
    assert made == images + 2 + (calls[after] if after else 0)
    unbroken, broken = (files(tmp_path / name) for name in ("unbroken", "broken"))
    assert unbroken.keys() == broken.keys()
    for name in unbroken:
        if name.endswith(".json"):
            assert unbroken[name] == broken[name]
    for name in ("train", "val", "test_test"):
        first, second = (
            np.load(next((tmp_path / side).rglob(f"{name}.npy"))) for side in ("unbroken", "broken")
        )
        np.testing.assert_allclose(first, second, rtol=2e-3, atol=2e-3)


def test_what_is_there_is_not_computed_again(stages, splits, tmp_path, monkeypatch):
    cached_splits(stages, splits, COPIES, tmp_path)
    monkeypatch.setattr(FrozenStages, "compute", lambda *_: pytest.fail("computed again"))
    cached_splits(stages, splits, COPIES, tmp_path)


def test_a_full_disk_is_told_before(stages, splits, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"must have 0.00 GB on the disk, got 0.00 GB free; take fewer copies"):
        cached_splits(stages, splits, COPIES, tmp_path)


def test_a_disk_that_fills_up_meanwhile(stages, splits, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="take fewer copies"):
        cached_splits(stages, splits, COPIES, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(("is_rounded", "tolerance"), [(True, 1e-5), (False, 5e-3)])
def test_training_from_the_cache_is_training_on_the_same_images(
    frozen_run, splits, tmp_path, is_rounded, tolerance
):
    """A few steps, with the frozen part computed anew for each batch; rounded to float16 it is the same."""
    weights = []
    for cached in (True, False):
        trunk, embedder = build_models(frozen_run, torch.device("cpu"))
        stages = FrozenStages(trunk, frozen_run.freeze, 32)
        dataset = cached_splits(stages, splits, COPIES, tmp_path).train
        trunk.train()
        parameters = [p for p in trunk.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD([*parameters, *embedder.parameters()], lr=0.05)
        sampler = DisjointClassPairSampler(splits.train.labels, m=2, batch_size=8, seed=0)
        indices = list(sampler)[:24]
        torch.manual_seed(1)
        draws = torch.randint(COPIES, (24,))
        for step in range(3):
            chosen = indices[8 * step : 8 * step + 8]
            items = []
            for index, copy in zip(chosen, draws[8 * step : 8 * step + 8], strict=True):
                if cached:
                    items.append(torch.from_numpy(np.array(dataset._activations[index, copy])))
                else:
                    items.append(list(_copies(splits.train, index, COPIES))[copy])
            batch = torch.stack(items)
            torch.manual_seed(step)  # for dropout
            if not cached:
                batch = stages.compute(batch)
                batch = batch.half() if is_rounded else batch
            embeddings = embedder(trunk(batch))
            optimizer.zero_grad()
            embeddings.square().mean().backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in (*parameters, *embedder.parameters())]))
    assert (weights[0] - weights[1]).norm() < tolerance * weights[0].norm()


def test_runs_share_one_cache_which_other_settings_replace(frozen_run, tmp_path):
    runs = [
        dataclasses.replace(frozen_run, pretrained=None, **options)
        for options in ({}, {"cross_batch_weight": 0.3}, {"iterations": 0})
    ]
    results = run_all(runs, tmp_path)
    (cache,) = (tmp_path / "frozen_stages").iterdir()
    assert all(0 <= value <= 1 for result in results for value in result.test.values())
    for result, run in zip(results, runs, strict=True):
        again = train(run, tmp_path.parent / f"{tmp_path.name}_again" / run.name)
        assert (again.history, again.test) == (result.history, result.test)
    run_all([dataclasses.replace(run, copies=2, embedding_size=4) for run in runs[:1]], tmp_path / "other")
    shutil.rmtree(tmp_path / runs[0].name)
    run_all([dataclasses.replace(runs[0], copies=1)], tmp_path)
    (other,) = (tmp_path / "frozen_stages").iterdir()
    assert other != cache


def test_runs_whose_test_classes_were_left_alone_find_their_activations_again(frozen_run, tmp_path):
    """Computed before the processes start, since two of them would write one file."""
    run = dataclasses.replace(frozen_run, iterations=2)
    chosen = run_all([run], tmp_path, split="validation")
    shutil.rmtree(tmp_path / "frozen_stages")
    _prepare_frozen_stages([run], tmp_path, "validation")
    assert not (tmp_path / "frozen_stages").exists()
    _prepare_frozen_stages([run], tmp_path, "test")
    before = files(tmp_path / "frozen_stages")
    assert before
    [measured] = run_all([run], tmp_path)
    assert dataclasses.replace(measured, test=None, seconds=0) == dataclasses.replace(chosen[0], seconds=0)
    assert files(tmp_path / "frozen_stages") == before
    assert measured.test == train(run, tmp_path / "anew").test
