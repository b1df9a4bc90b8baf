"""Which part of a sampler's plan a process takes, and whether something else would deal it out again."""

import sys

import torch
from torch.utils.data import Sampler

from ._integers import check_integer


def replica(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """How many processes train together, and the number of this one.

    Args:
        num_replicas: None for the size of the default process group, or 1 if there is none.
        rank: None for the rank in the default process group, or 0 where it is the only one.

    Raises:
        TypeError, ValueError: if one is no integer or out of its range, or the rank is missing.
    """
    group_size = process_group_size()
    num_replicas = check_integer("num_replicas", group_size or 1 if num_replicas is None else num_replicas, 1)
    if rank is None:
        if num_replicas > 1 and not group_size:
            raise ValueError(
                f"rank must be 0 to {num_replicas - 1}, a number of its own for each process, got None with "
                f"num_replicas={num_replicas} and no default process group"
            )
        rank = torch.distributed.get_rank() if num_replicas > 1 else 0
    rank = check_integer("rank", rank, 0)
    if rank >= num_replicas:
        raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}")
    return num_replicas, rank


def process_group_size() -> int:
    """The size of the default process group, 0 if there is none."""
    has_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if has_group else 0


def raise_if_made_before_the_group(num_replicas: int) -> None:
    """Every process would draw the same batches.

    Args:
        num_replicas: the size of the process group when the sampler was made, or 1 if there was none.

    Raises:
        ValueError: if the default process group has another size.
    """
    group_size = process_group_size()
    if group_size not in (0, num_replicas):
        raise ValueError(
            f"num_replicas must be {group_size}, the size of the default process group, got {num_replicas}: "
            "make the sampler when the group is there (in train_dataloader() with Lightning, after "
            "Accelerator() with Accelerate, after init_process_group() else), or pass num_replicas and rank"
        )


def raise_if_accelerate_shards(sampler: Sampler[int], num_replicas: int, samples_per_cut: int) -> None:
    """A loader that Accelerate has prepared for several processes deals the batches of a sampler out to them.

    Right is only that it cuts every batch of a plan for one process where its classes end.

    Args:
        sampler: the sampler that is about to be iterated.
        num_replicas: the number of processes that its plan is for.
        samples_per_cut: a batch may be cut at multiples of this.

    Raises:
        ValueError: if the batches that a process gets would not be two halves without a common class,
            or those of all processes together would not.
    """
    state = sys.modules.get("accelerate.state")
    if state is None or not state.is_initialized():
        return
    loader, num_processes = state.GradientState().active_dataloader, state.PartialState().num_processes
    if loader is None or num_processes == 1:
        return
    level = getattr(loader, "batch_sampler", None)
    batch_size = getattr(level, "batch_size", None)
    # Prepared loaders wrap the batch sampler, and batch samplers hold a sampler.
    split_batches = getattr(loader, "split_batches", False)
    while level is not None and level is not sampler:
        split_batches = split_batches or getattr(level, "split_batches", False)
        level = getattr(level, "batch_sampler", None) or getattr(level, "sampler", None)
    if level is None:
        return
    if num_replicas == 1 and split_batches and batch_size % (num_processes * samples_per_cut) == 0:
        return
    raise ValueError(
        "the loader of a DisjointClassPairSampler must be left out of accelerator.prepare(), got one that is "
        f"for {num_processes} processes: the sampler gives each process its own batches already. To have "
        "Accelerate deal them out, make the sampler with num_replicas=1 and the batch_size of all processes "
        f"together, a multiple of 2 * m * num_processes = {samples_per_cut * num_processes}, and set "
        "DataLoaderConfiguration(split_batches=True)"
    )
