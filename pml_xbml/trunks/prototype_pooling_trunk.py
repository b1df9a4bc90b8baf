from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import check_options
from .._evaluation import evaluation
from ._dropped_head import warn_of_dropped_head
from ._pool_location import GlobalAverage, PooledFeatures, pooled_by, replace_modules
from ._pool_search import find_global_pool
from .prototype_pooling import PrototypePooling, as_local_features

_IMAGES_PER_RUN = 32
_IMAGES_OF_A_LOADER = 512


class PrototypePoolingTrunk(torch.nn.Module):
    """Wraps a backbone, in place, so that it ends in a :class:`PrototypePooling`.

    The network is run on noise at several sizes, which shows the last module that averages all positions of
    its input and what runs after it. Networks of torchvision, timm and pretrainedmodels that average by a
    function call are known. What follows the average (norms, hidden layers, auxiliary and final classifiers)
    is dropped; a warning names it, unless it is the library's own classifier. A network that returns feature
    maps or tokens is pooled behind its output. With the default output the wrapped trunk in evaluation mode
    gives bit for bit what the network gives without the dropped modules.

    Vision transformers: the local features are the patch tokens behind the last norm in front of the pooling;
    class and register tokens are left out, whether or not the network classified by them. A network of one's
    own that returns tokens says with ``num_prefix_tokens`` how many of them, in front, are no patches; where
    that leaves open which tokens are patches, it is refused.

    Args:
        trunk: the network, from images (B, channels, H, W) to one tensor.
        num_prototypes: m ≥ 1.
        pool: dotted name of the module to replace by the pooling, such as ``"backbone.avgpool"``. None to
            find the last global average.
        **pooling_options: handed to :class:`PrototypePooling`: ``temperature``, ``similarity``, ``output``,
            ``eval_histograms``, ``collect_stats``.

    Attributes:
        trunk: the network, which now ends in ``pooling``.
        num_features: C, the channels at the average, and of the output.

    Raises:
        TypeError: if ``trunk`` is not a module, ``pool`` not a string, or an option unknown.
        ValueError: if the trunk is wrapped already; if it cannot be told where it averages (the message
            names the candidates); if it has no module ``pool``, or goes on after it in a way that cannot be
            dropped; if an option of the pooling is out of range. The network is then as it was.

    Example:
        >>> import torchvision
        >>> trunk = PrototypePoolingTrunk(torchvision.models.resnet18(), num_prototypes=8)
        >>> trunk.num_features
        512
        >>> trunk(torch.randn(4, 3, 64, 64)).shape, trunk.histograms.shape
        (torch.Size([4, 512]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        trunk: torch.nn.Module,
        num_prototypes: int = 16,
        pool: str | None = None,
        **pooling_options: Any,
    ) -> None:
        super().__init__()
        _check_trunk(trunk)
        if pool is not None and not isinstance(pool, str):
            raise TypeError(f"pool must be the dotted name of a module of the trunk, got {pool!r}")
        check_options(pooling_options, "PrototypePoolingTrunk", names_of_arguments())
        location = find_global_pool(trunk, pool)
        pooling = PrototypePooling(location.num_features, num_prototypes, **pooling_options)
        parameter = next((p for p in trunk.parameters() if p.is_floating_point()), None)
        if parameter is not None:
            pooling.to(device=parameter.device, dtype=parameter.dtype)
        pooling.train(trunk.training)
        warn_of_dropped_head(trunk, location)
        self.training = trunk.training
        self.num_features = location.num_features
        self._location = location
        self.trunk = pooled_by(trunk, location, pooling)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images.

        Args:
            images: (B, channels, H, W), as the network takes them.

        Returns:
            (B, C): the average of the local features, or with ``output="prototypes"`` the convex combination.

        Raises:
            ValueError: if what reaches the pooling is not feature maps or tokens of C channels.
        """
        pooled: Tensor = self.trunk(images)
        return pooled

    @property
    def pooling(self) -> PrototypePooling:
        """The pooling that the network ends in."""
        pooling = self.trunk.get_submodule(self._pooling_name)
        if not isinstance(pooling, PrototypePooling):
            raise RuntimeError("this trunk was unwrapped, and has no prototypes any more")
        return pooling

    @property
    def histograms(self) -> Tensor | None:
        """(B, m) of the last forward in training mode, see :class:`PrototypePooling`."""
        return self.pooling.histograms

    @property
    def prototypes(self) -> torch.nn.Parameter:
        """The pooling's parameter (m, C)."""
        return self.pooling.prototypes

    def init_prototypes(self, images: Tensor | Iterable[Any]) -> float:
        """Sets the prototypes to local features of images that cover all of them, by greedy k-center.

        Runs the network in evaluation mode, 32 images at a time; all modes are left as they were.

        Args:
            images: a few hundred training images, transformed as in training: a tensor (B, channels, H, W); a
                list of such tensors, or of images (channels, H, W); or a loader of batches or of
                (images, labels), of which the first 512 images are taken.

        Returns:
            The cover radius among unit vectors, see :meth:`PrototypePooling.init_prototypes`.

        Raises:
            TypeError: if there is something else than images, or they are not of the floating point type
                that the network takes.
            ValueError: if there are no images, or their local features do not suffice for the prototypes.
        """
        collected: list[Tensor] = []
        handle = self.pooling.register_forward_pre_hook(
            lambda _, inputs: collected.append(as_local_features(inputs[0]).flatten(0, 1))
        )
        try:
            with evaluation(self):
                for batch in _image_batches(images):
                    for part in batch.split(_IMAGES_PER_RUN):
                        self._run_on(part.to(self.prototypes.device))
        finally:
            handle.remove()
        # With eval_histograms there are some now, which no loss should take for those of its batch.
        self.pooling.histograms = None
        return self.pooling.init_prototypes(torch.cat(collected))

    def _run_on(self, images: Tensor) -> None:
        try:
            self(images)
        except RuntimeError as error:
            # Under autocast, and where the network converts images itself, other types do.
            if images.dtype == self.prototypes.dtype:
                raise
            raise TypeError(
                f"images must be {self.prototypes.dtype}, as the parameters of the trunk are, got "
                f"{images.dtype}: pass images.to({self.prototypes.dtype})"
            ) from error

    def unwrap(self) -> torch.nn.Module:
        """Gives the network back, for deployment: a plain average in place of the pooling, same outputs.

        In place, as the wrapping was: this trunk has no prototypes from here on. To train on, unwrap a copy:
        ``copy.deepcopy(trunk).unwrap()``. The modules behind the average stay dropped. Where the network's
        own forward cannot give the average of its local features (vision transformers that take the class
        token, timm's networks, bare feature extractors), it comes back inside a small module that averages.

        Returns:
            The network, from images to the average (B, C).

        Raises:
            ValueError: with ``output="prototypes"``, which no plain average equals.
        """
        if self.pooling.output != "average":
            raise ValueError(
                f"a trunk with output={self.pooling.output!r} cannot be unwrapped, because a plain average "
                "has other outputs: deploy the trunk as it is, or build it with output='average'"
            )
        average = GlobalAverage().train(self.training)
        replace_modules(self.trunk, {self._pooling_name: average})
        if isinstance(self.trunk, PooledFeatures) and self._location.returns_average:
            return self.trunk.network
        return self.trunk

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a checkpoint of this trunk, or one of the plain backbone.

        A plain checkpoint may hold the modules that were dropped, whose entries are left out; the prototypes
        stay as they are. Everything else is checked as ever.

        Args:
            state_dict: of a :class:`PrototypePoolingTrunk`, or of the network as it was before it was
                wrapped, or after :meth:`unwrap`.
            strict: see :meth:`torch.nn.Module.load_state_dict`.
            assign: see :meth:`torch.nn.Module.load_state_dict`.

        Returns:
            The missing and unexpected keys.
        """
        if not self.state_dict().keys() & state_dict.keys():
            state_dict = self._from_plain_checkpoint(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        raise TypeError(
            "torch.jit.script must get a trunk without prototypes, got a PrototypePoolingTrunk: call "
            "unwrap() first, as in torch.jit.script(copy.deepcopy(trunk).unwrap())"
        )

    @property
    def _pooling_name(self) -> str:
        return self._location.pool or "pooling"

    @property
    def _record_these(self) -> list[str]:
        return getattr(self.trunk.get_submodule(self._pooling_name), "_record_these", [])

    @property
    def _record_these_stats(self) -> list[str]:
        return getattr(self.trunk.get_submodule(self._pooling_name), "_record_these_stats", [])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # pytorch-metric-learning records models without recursion: what the pooling offers for the
            # records is handed on.
            is_built = "trunk" in vars(self).get("_modules", {})
            if is_built and name in (*self._record_these, *self._record_these_stats):
                return getattr(self.pooling, name)
            raise

    def _from_plain_checkpoint(self, state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
        """Renames the entries of a plain backbone's checkpoint, without those of the dropped modules."""
        prefix = "trunk."
        if isinstance(self.trunk, PooledFeatures) and not all(
            key.startswith("network.") for key in state_dict
        ):
            prefix = "trunk.network."
        dropped = tuple(f"{name}." for name in (*self._location.dropped_modules, self._pooling_name))
        translated = OrderedDict((prefix + k, v) for k, v in state_dict.items() if not k.startswith(dropped))
        pooling_prefix = f"trunk.{self._pooling_name}."
        translated |= {k: v for k, v in self.state_dict().items() if k.startswith(pooling_prefix)}
        # Versions of modules, by which some of them read old checkpoints.
        versions = getattr(state_dict, "_metadata", {})
        translated._metadata = {  # type: ignore[attr-defined]
            f"{prefix}{name}".rstrip("."): version for name, version in versions.items()
        }
        return translated


def names_of_arguments() -> list[str]:
    """Names all arguments of :class:`PrototypePoolingTrunk`, with those that it hands on."""
    parameters = inspect.signature(PrototypePoolingTrunk).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    # The network tells num_features.
    handed_on = [name for name in inspect.signature(PrototypePooling).parameters if name != "num_features"]
    return list(dict.fromkeys(own + handed_on))


def _check_trunk(trunk: torch.nn.Module) -> None:
    if not isinstance(trunk, torch.nn.Module):
        raise TypeError(f"trunk must be a torch.nn.Module, got {type(trunk).__name__}")
    for name, module in trunk.named_modules():
        if isinstance(module, (PrototypePooling, PrototypePoolingTrunk)):
            raise ValueError(
                f"the trunk ({type(trunk).__name__}) is wrapped already: it has a {type(module).__name__} at "
                f"{name or 'its root'!r}; use it as it is, or wrap what its unwrap() gives"
            )


def _image_batches(images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """The images in batches (B, channels, H, W)."""
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a tensor, a list of tensors or a loader, got {images!r}")
    is_loader = not isinstance(images, (Tensor, list, tuple))
    num_images = 0
    for item in [images] if isinstance(images, Tensor) else images:
        batch = _checked_images(item[0] if isinstance(item, (list, tuple)) and item else item)
        if batch.ndim == 3 and not isinstance(images, Tensor):
            batch = batch.unsqueeze(0)
        if batch.ndim != 4 or len(batch) == 0:
            raise ValueError(f"images must be (B, channels, H, W) with B > 0, got shape {tuple(batch.shape)}")
        yield batch[: _IMAGES_OF_A_LOADER - num_images] if is_loader else batch
        num_images += len(batch)
        if is_loader and num_images >= _IMAGES_OF_A_LOADER:
            return
    if num_images == 0:
        raise ValueError(f"images must hold at least one image, got an empty {type(images).__name__}")


def _checked_images(batch: Any) -> Tensor:
    if not isinstance(batch, Tensor):
        raise TypeError(
            "images must be tensors (B, channels, H, W), or batches (images, labels) of them, got "
            f"{type(batch).__name__}"
        )
    if not batch.is_floating_point():
        raise TypeError(
            f"images must be floating point, transformed as in training, got {batch.dtype}: pass "
            "images.float() / 255, normalized as the network expects"
        )
    return batch
