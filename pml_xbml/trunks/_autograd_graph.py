"""Tells by the graph of autograd which forward pass of a pooling gave a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def stems_from_another_forward(embeddings: Tensor, histograms: Tensor, prototypes: Tensor) -> bool:
    """Whether embeddings were computed by a forward pass of a pooling that gave other histograms.

    Every forward pass ties its output to the prototypes, so the graph of the embeddings leads to them. If it
    does so without any node of the histograms' graph, another pass gave the embeddings. Usually the node of
    the histograms is found a few steps behind the embedder, and the walk ends there.

    Args:
        embeddings: computed from an output of the pooling.
        histograms: of the last forward pass.
        prototypes: the pooling's parameter.

    Returns:
        Whether this is certain. False where the graphs cannot tell: tensors without gradient, frozen
        prototypes, embeddings that were detached from the pooling.
    """
    if not (embeddings.requires_grad and histograms.requires_grad and prototypes.requires_grad):
        return False
    last_forward = histograms.grad_fn
    visited, reaches_prototypes = set(), False
    for node in _ancestors(embeddings.grad_fn):
        if node is last_forward:
            return False
        visited.add(node)
        reaches_prototypes = reaches_prototypes or getattr(node, "variable", None) is prototypes
    # Compiled functions may give the two outputs nodes of their own, behind which the graph is one.
    shares_a_node = any(
        node in visited and not hasattr(node, "variable") for node in _ancestors(last_forward)
    )
    return reaches_prototypes and not shares_a_node


def _ancestors(node: Any) -> Iterator[Any]:
    """The node and all that lead to it, breadth first; of a leaf there are none."""
    queue = deque([] if node is None else [node])
    seen = {node}
    while queue:
        node = queue.popleft()
        yield node
        for ancestor, _ in node.next_functions:
            if ancestor is not None and ancestor not in seen:
                seen.add(ancestor)
                queue.append(ancestor)
