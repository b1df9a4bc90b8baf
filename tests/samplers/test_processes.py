"""Two processes of Lightning and of Accelerate: right halves on each, or an error that says what to set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pml_xbml.samplers import DisjointClassPairSampler

LABELS = torch.arange(140) // 7
pytestmark = pytest.mark.slow
kinds = pytest.mark.parametrize("kind", ["sampler", "batch_sampler"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of the two processes wrote."""
    folder = tmp_path_factory.mktemp("worker")
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(Path(__file__).with_name("worker.py"), folder),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@kinds
@pytest.mark.parametrize("case", ["lightning", "lightning, switched off", "not prepared"])
def test_a_sampler_that_is_left_in_place_gives_each_process_its_own_batches(results, kind, case):
    if (kind, case) == ("batch_sampler", "lightning"):
        case = "lightning, switched off"  # see the test below
    for rank in range(2):
        sampler = DisjointClassPairSampler(LABELS, 2, 12, 48, seed=0, num_replicas=2, rank=rank)
        expected = torch.tensor([list(sampler) for _ in range(2)]).reshape(-1, 12)
        assert results[rank][kind][case] == expected.tolist()


@kinds
@pytest.mark.parametrize("case", ["whole", "whole, dispatched"])
def test_accelerate_may_split_the_batches_of_one_plan(results, kind, case):
    """Each process trains on two halves without a common class, and so do all together."""
    steps = torch.tensor([results[rank][kind][case] for rank in range(2)])
    assert steps.shape == (2, 8, 12)
    for step in LABELS[steps].transpose(0, 1):
        first, second = ({*half.flatten().tolist()} for half in step.split(6, dim=1))
        assert first.isdisjoint(second)
        assert len(first) == len(second) == 6
    assert len(set(steps[:, :4].flatten().tolist())) > 90


def test_lightning_refuses_to_replace_the_batch_sampler(results):
    for result in results:
        assert "TypeError" in result["batch_sampler"]["lightning"]
        assert "Trainer(use_distributed_sampler=False)" in result["batch_sampler"]["lightning"]


@kinds
def test_a_sampler_that_was_made_before_the_process_group_is_refused(results, kind):
    for result in results:
        message = result[kind]["lightning, made before the group"]
        if kind == "sampler":
            assert "num_replicas must be 2, the size of the default process group, got 1" in message
            assert "train_dataloader()" in message
        else:
            assert "use_distributed_sampler=False" in message


@kinds
@pytest.mark.parametrize(
    "case",
    [
        "prepared",
        "prepared, split",
        "prepared, uneven",
        "prepared, one replica",
        "prepared, stateful",
        "whole, cut in a class",
    ],
)
def test_a_loader_that_accelerate_would_deal_out_again_is_refused(results, kind, case):
    for result in results:
        message = result[kind][case]
        assert "must be left out of accelerator.prepare()" in message
        assert "DataLoaderConfiguration(split_batches=True)" in message


def test_a_loader_that_accelerate_would_dispatch_is_refused(results):
    assert "must be left out of accelerator.prepare()" in results[0]["sampler"]["dispatched"]


def test_one_process_may_prepare_its_loader():
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    sampler = DisjointClassPairSampler(LABELS, 2, 12, 48, seed=0)
    loader = Accelerator(cpu=True).prepare(DataLoader(TensorDataset(LABELS), 12, sampler=sampler))
    assert [len(labels) for (labels,) in loader] == [12] * 4
