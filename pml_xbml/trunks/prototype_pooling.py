from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _pml, functional
from .._checks import check_choice, check_number, check_positive_integer
from ._autograd_graph import stems_from_another_forward
from ._statistics import batches_since_chosen, cover_radius_and_gap, perplexity

# A prototype counts as dead once no local feature has matched it best for so many batches.
DEAD_AFTER = 20

_RECORDS = ("perplexity", "image_perplexity", "cover_radius", "lemma_gap", "dead_prototypes")


class PrototypePooling(torch.nn.Module):
    """Global average pooling that also tells each image's histogram over learnable prototypes.

    The drop-in for a global average pool of section 1 of the method: with the default output it gives exactly
    what ``AdaptiveAvgPool2d(1)`` and a flatten give, bit for bit, and in training it computes beside it

        π_ij = (1/n) softmax_i( s(ν_i, x_j) / τ ),     z_i = Σ_j π_ij

    for the local features x_j and the prototypes ν_i (Definition 4, equation (A.5), and Claim 1 of
    arXiv:2307.07620, smoothed by entropy). :class:`~pml_xbml.losses.CrossBatchPrototypeLoss` reads them from
    ``histograms``.

    Args:
        num_features: C, the channels of the local features.
        num_prototypes: m ≥ 1.
        temperature: τ > 0, in units of the similarity. Towards 0 each feature counts for its best match only.
        similarity: "cosine", or "dot" for the plain product.
        output: "average" for the global average, "prototypes" for the convex combination Σ_i z_i ν_i.
        eval_histograms: compute the histograms in evaluation mode too: for frozen trunks, which
            pytorch-metric-learning's ``freeze_these`` puts into evaluation mode, and for looking.
        collect_stats: compute records of each batch, as everywhere in pytorch-metric-learning:
            ``perplexity`` of the batch's mean histogram (how many prototypes are in use) and
            ``image_perplexity``, the mean of the images' own; ``cover_radius`` δ and ``lemma_gap``, the two
            sides of Lemma 1 among unit vectors; ``dead_prototypes``, how many no local feature has matched
            best for 20 batches.

    Attributes:
        prototypes: parameter (m, C). Drawn from a generator of its own, so that building one does not shift
            the random numbers of what is built after it; :meth:`init_prototypes` gives it a better start.
        histograms: (B, m) of the last forward, with its graph, at least float32. None before the first
            forward and after one in evaluation mode.

    Raises:
        ValueError, TypeError: on an argument out of range.

    Example:
        >>> pooling = PrototypePooling(num_features=32, num_prototypes=8)
        >>> feature_maps = torch.randn(4, 32, 7, 7)
        >>> pooling(feature_maps).shape, pooling.histograms.shape
        (torch.Size([4, 32]), torch.Size([4, 8]))
        >>> torch.allclose(pooling.histograms.sum(dim=1), torch.ones(4))
        True
    """

    # Kept from batch to batch outside of the state_dict; checkpoints carry what is there of it.
    _carried_state = ("batches_since_chosen",)

    prototypes: torch.nn.Parameter
    histograms: Tensor | None
    batches_since_chosen: Tensor

    def __init__(
        self,
        num_features: int,
        num_prototypes: int = 16,
        temperature: float = 0.1,
        similarity: str = "cosine",
        output: str = "average",
        eval_histograms: bool = False,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        check_positive_integer("num_features", num_features)
        check_positive_integer("num_prototypes", num_prototypes)
        check_number("temperature", temperature)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        check_choice("similarity", similarity, functional.SIMILARITIES)
        check_choice("output", output, ("average", "prototypes"))
        self.num_features = num_features
        self.num_prototypes = num_prototypes
        self.temperature = temperature
        self.similarity = similarity
        self.output = output
        self.eval_histograms = eval_histograms
        self.prototypes = torch.nn.Parameter(
            torch.randn(num_prototypes, num_features, generator=torch.Generator().manual_seed(0)).to(
                device=torch.get_default_device(), dtype=torch.get_default_dtype()
            )
        )
        self.histograms = None
        self._left_out_histograms = False
        self.collect_stats = _pml.collects_stats_by_default() if collect_stats is None else collect_stats
        # pytorch-metric-learning and record-keeper read these two lists; no base class of theirs is needed.
        self._record_these: list[str] = []
        self._record_these_stats: list[str] = []
        if self.collect_stats:
            self._record_these_stats += _RECORDS
            for name in _RECORDS:
                setattr(self, name, 0)
            counts = torch.zeros(num_prototypes, dtype=torch.long)
            self.register_buffer("batches_since_chosen", counts, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Pools local features.

        Args:
            features: feature maps (B, C, H, W) or tokens (B, N, C).

        Returns:
            (B, C): the average, or Σ_i z_i ν_i with ``output="prototypes"``.

        Raises:
            TypeError: if features are no tensor of floating point.
            ValueError: on another rank or number of channels or no positions, and in a replica of
                ``DataParallel``, whose histograms never reach the module that the loss reads.
        """
        self._check_features(features)
        wants_histograms = self.training or self.eval_histograms
        self._left_out_histograms = not wants_histograms
        if not wants_histograms and self.output == "average":
            self.histograms = None
            return features.mean(1) if features.ndim == 3 else _global_average(features)
        if getattr(self, "_is_replica", False):
            raise ValueError(
                "PrototypePooling cannot run under torch.nn.DataParallel on several devices: the histograms "
                "of the replicas are lost. Use torch.nn.parallel.DistributedDataParallel, or one device."
            )
        output, histograms = functional.average_and_histograms(
            features.mT if features.ndim == 3 else features,
            self.prototypes,
            self.temperature,
            self.similarity,
        )
        if self.output == "prototypes":
            output = histograms.to(features.dtype) @ self.prototypes.to(features.dtype)
        self.histograms = histograms if wants_histograms else None
        if self.collect_stats:
            self._collect_stats(as_local_features(features), histograms)
        return output

    def histograms_of(self, embeddings: Tensor) -> Tensor | None:
        """The histograms of the images whose embeddings came from the last forward, for a loss.

        Other forwards may have run before, and their outputs may be kept; only embeddings of one of them are
        an error. This is read from the graph of autograd, of compiled trunks too. It cannot be known while
        the prototypes are frozen, for embeddings without a graph that leads to the pooling, or of forwards
        that ``torch.compile`` made one graph of. Within compiled code it is not checked:
        ``CrossBatchPrototypeLoss`` leaves it for this.

        Args:
            embeddings: (B, D), computed from the output of the last forward.

        Returns:
            (B, m); None if the last forward ran in evaluation mode, where there are none, and the embeddings
            require no gradient, as in a validation loop.

        Raises:
            ValueError: if there are none, because no forward has run yet, or because the last one ran in
                evaluation mode and the embeddings require a gradient; if an earlier forward gave the
                embeddings; or if the prototypes would get no gradient.
        """
        if self.histograms is None:
            if not self._left_out_histograms:
                raise ValueError(
                    "pooling must hold histograms, got none: no forward has run yet. Run the trunk first."
                )
            if not embeddings.requires_grad:
                return None
            raise ValueError(
                "pooling must hold histograms, got none: the last forward ran in evaluation mode. Run the "
                "trunk in training mode, or build a frozen one with eval_histograms=True; a validation loss "
                "needs none under torch.no_grad()."
            )
        if torch.compiler.is_compiling():
            return self.histograms
        is_trained = embeddings.requires_grad and self.prototypes.requires_grad
        if torch.is_grad_enabled() and is_trained and not self.histograms.requires_grad:
            raise ValueError(
                "the histograms carry no gradient although the prototypes require one: the trunk ran under "
                "torch.no_grad() or under reentrant activation checkpointing. Use "
                "checkpoint(..., use_reentrant=False), or freeze the prototypes with requires_grad_(False)."
            )
        if stems_from_another_forward(embeddings, self.histograms, self.prototypes):
            raise ValueError(
                "embeddings must come from the last forward of the trunk, got those of an earlier one, whose "
                "histograms are gone. Run the loss before the trunk runs again, or the trunk once on the "
                "concatenated batch."
            )
        return self.histograms

    @torch.no_grad()
    def init_prototypes(self, features: Tensor) -> float:
        """Sets the prototypes to local features that cover all of them, by greedy k-center.

        They are chosen among the features divided by their norms and stored as the raw features at those
        places, so that Σ_i z_i ν_i has the scale of the average.

        Args:
            features: feature maps (B, C, H, W), tokens (B, N, C) or single local features (n, C) of a few
                hundred training images. Features of norm zero are left out.

        Returns:
            The cover radius δ in [0, 2] among unit vectors: each unit feature lies within δ of a prototype's
            direction, which bounds the gap of Lemma 1.

        Raises:
            TypeError: if features are no tensor of floating point.
            ValueError: if features are not finite, or hold fewer distinct directions than prototypes.
        """
        _check_floating_point(features)
        if features.ndim != 2:
            self._check_features(features)
            features = as_local_features(features).flatten(0, 1)
        elif features.shape[1] != self.num_features:
            raise ValueError(self._wrong_shape(features))
        features = features.detach().to(self.prototypes)
        if not features.isfinite().all():
            raise ValueError("features must be finite to initialize prototypes, got NaN or infinity")
        directions = functional.l2_normalize(features)
        has_direction = directions.any(dim=1)
        features, directions = features[has_direction], directions[has_direction]
        if len(features) < self.num_prototypes:
            raise ValueError(
                f"init_prototypes needs at least num_prototypes = {self.num_prototypes} local features other "
                f"than zero, got {len(features)}: pass more images, or build with fewer prototypes"
            )
        centers, radius = functional.greedy_k_center(directions, self.num_prototypes)
        num_distinct = len(directions[centers].unique(dim=0))
        if num_distinct < self.num_prototypes:
            raise ValueError(
                f"init_prototypes found {num_distinct} distinct directions among {len(features)} local "
                f"features, fewer than num_prototypes = {self.num_prototypes}: pass more varied images, or "
                "build with fewer prototypes"
            )
        self.prototypes.copy_(features[centers])
        return radius.item()

    def assignments(self, features: Tensor) -> Tensor:
        """Where in the images each prototype is found, for pictures.

        Args:
            features: feature maps (B, C, H, W), or tokens (B, N, C).

        Returns:
            (B, m, H, W) for maps and (B, m, N) for tokens: the share of each prototype in each local
            feature, summing to one over the prototypes.
        """
        self._check_features(features)
        assigned = functional.assignments(
            as_local_features(features), self.prototypes, self.temperature, self.similarity
        )
        return assigned if features.ndim == 3 else assigned.unflatten(2, features.shape[2:])

    def __prepare_scriptable__(self) -> torch.nn.Module:
        raise TypeError(
            "torch.jit.script must get a network without prototypes, got a PrototypePooling: put an "
            "average in its place, or call unwrap() on a PrototypePoolingTrunk, first"
        )

    def extra_repr(self) -> str:
        return (
            f"num_features={self.num_features}, num_prototypes={self.num_prototypes}, "
            f"temperature={self.temperature}, similarity={self.similarity!r}, output={self.output!r}, "
            f"eval_histograms={self.eval_histograms}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # The last histograms belong to a graph, which neither copy nor pickle takes.
        return self.__dict__ | {"histograms": None, "_left_out_histograms": False}

    @torch.no_grad()
    def _collect_stats(self, features: Tensor, histograms: Tensor) -> None:
        self.perplexity = perplexity(histograms.mean(0))
        self.image_perplexity = perplexity(histograms).mean()
        self.cover_radius, self.lemma_gap = cover_radius_and_gap(features, self.prototypes)
        assigned = functional.hard_assignments(features, self.prototypes, self.similarity)
        self.batches_since_chosen = batches_since_chosen(self.batches_since_chosen, assigned)
        self.dead_prototypes = (self.batches_since_chosen >= DEAD_AFTER).sum()

    def _check_features(self, features: Tensor) -> None:
        _check_floating_point(features)
        channel_dim = {3: 2, 4: 1}.get(features.ndim)
        # An empty batch passes, as it does an average pool; over no positions there is no average.
        if channel_dim is None or features.shape[channel_dim] != self.num_features or 0 in features.shape[1:]:
            raise ValueError(self._wrong_shape(features))

    def _wrong_shape(self, features: Tensor) -> str:
        return (
            f"features must be feature maps (B, {self.num_features}, H, W) or tokens "
            f"(B, N, {self.num_features}), got a tensor of shape {tuple(features.shape)}"
            f"{', which has no positions to average' if 0 in features.shape[1:] else ''}"
        )


def _global_average(feature_maps: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(feature_maps, 1).flatten(1)


def as_local_features(features: Tensor) -> Tensor:
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2)


def _check_floating_point(features: Tensor) -> None:
    if not torch.is_tensor(features) or not features.is_floating_point():
        came = f"one of {features.dtype}" if torch.is_tensor(features) else f"{features!r}"
        raise TypeError(f"features must be a tensor of floating point, got {came}")
