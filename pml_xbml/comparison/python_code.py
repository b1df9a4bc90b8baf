"""The Python lines that make the network, loss and sampler of a run, for a user to paste."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torchvision

from ..losses import CrossBatchPrototypeLoss
from ..trunks import PrototypePoolingTrunk
from .loss_table import LOSSES
from .networks import SMALL
from .run_config import RunConfig


def python_code(run: RunConfig) -> str:
    """Writes down how to make what a run trains with.

    Args:
        run: the run.

    Returns:
        Python lines. They read two variables: ``images``, a tensor of some hundred training images, and
        ``labels``, those of all training images.
    """
    imports, network = _network(run)
    pooling_options = {"num_prototypes": _default(PrototypePoolingTrunk, "num_prototypes")}
    pooling_options.update(run.pooling_options)
    wrapped = f"trunks.PrototypePoolingTrunk({_arguments('network', **pooling_options)})"
    if run.arm == "untouched":
        lines = ["trunk = trunks.PrototypePoolingTrunk(network).unwrap().eval()"]
        return "\n".join([*imports, "from pml_xbml import trunks", "", *network, *lines])

    table = LOSSES[run.loss]
    loss = _loss(run.loss, run.embedding_size)
    imports += ["from pytorch_metric_learning import losses as pml_losses"]
    imports += ["from pytorch_metric_learning import miners"] if table.build_miner else []
    imports += ["", f"from pml_xbml import {'losses, ' if run.arm == 'xml' else ''}samplers, trunks"]
    imports += ["from pml_xbml.comparison.control_loss import ControlLoss"] if run.arm == "control" else []
    frozen_imports, frozen = _frozen(run)
    imports += frozen_imports
    if run.arm == "xml":
        lines = [
            f"trunk = {wrapped}",
            f"trunk.init_prototypes(images)  # {run.prototype_images} of the training images",
            f"embedder = torch.nn.Linear(trunk.num_features, {run.embedding_size})",
            *frozen,
            *_cross_batch_loss(run, loss),
        ]
    else:
        lines = [
            "wrapped = trunks.PrototypePoolingTrunk(network)",
            f"embedder = torch.nn.Linear(wrapped.num_features, {run.embedding_size})",
            "trunk = wrapped.unwrap()",
            *frozen,
            f"loss = ControlLoss({loss}, {run.cross_batch_weight:g})"
            if run.arm == "control"
            else f"loss = {loss}",
        ]
    if table.build_miner:
        lines.append(f"miner = {_call('miners', table.build_miner)}")
    lines.append(
        "sampler = samplers.DisjointClassPairSampler("
        f"labels, m={run.samples_per_class}, batch_size={run.batch_size})"
    )
    return "\n".join([*imports, "", *network, *lines, *_comments(run)])


def _network(run: RunConfig) -> tuple[list[str], list[str]]:
    """The imports, and the lines that make the backbone."""
    pretrained = run.pretrained
    from_file = pretrained is not None and Path(pretrained).is_file()
    named = None if from_file else pretrained
    imports = ["import torch"]
    if ":" in run.trunk:
        imports.append("from pml_xbml.comparison.networks import build_network")
        return [*imports, ""], [f"network = build_network({run.trunk!r}, {pretrained!r})"]
    if run.trunk == SMALL:
        make = "trunks.SmallTrunk()"
    elif run.trunk in torchvision.models.list_models(module=torchvision.models):
        imports.append("import torchvision")
        make = f"torchvision.models.get_model({run.trunk!r}, weights={named!r})"
    else:
        imports.insert(0, "import timm")
        make = f"timm.create_model({run.trunk!r}, pretrained={named is not None})"
    lines = [f"network = {make}"]
    if from_file:
        lines.append(f"network.load_state_dict(torch.load({pretrained!r}, weights_only=True))")
    return imports, lines


def _frozen(run: RunConfig) -> tuple[list[str], list[str]]:
    """The imports, and the lines that freeze of the trunk what the run froze."""
    names, lines = [], []
    if run.freeze is not None:
        names.append("FrozenStages")
        lines.append(f"FrozenStages(trunk, {run.freeze!r}, images.shape[-1], cut=False)")
    if run.freezes_norms:
        names.append("freeze_norms")
        lines.append("freeze_norms(trunk)  # its normalization layers stay in evaluation mode")
    imports = f"from pml_xbml.comparison.frozen_stages import {', '.join(names)}"
    return [imports] if names else [], lines


def _loss(name: str, embedding_size: int) -> str:
    """A loss of the table."""
    table = LOSSES[name]
    if table.learning_rate is None:
        return _call("pml_losses", table.build_loss)
    return _call(
        "pml_losses",
        table.build_loss,
        num_classes=_Code("len(set(labels))"),
        embedding_size=embedding_size,
    )


def _cross_batch_loss(run: RunConfig, loss: str) -> list[str]:
    """All options, defaults included: those of a later version may be others."""
    parameters = inspect.signature(CrossBatchPrototypeLoss).parameters.values()
    options = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name not in ("loss", "pooling")
    }
    options.update(
        expressed_loss=_Code("pml_losses.ContrastiveLoss(pos_margin=0, neg_margin=1)"),
        **run.loss_options,
        cross_batch_weight=run.cross_batch_weight,
    )
    arguments = [loss, "pooling=trunk", *(f"{name}={value!r}" for name, value in options.items())]
    return ["loss = losses.CrossBatchPrototypeLoss(", *(f"    {argument}," for argument in arguments), ")"]


def _comments(run: RunConfig) -> list[str]:
    """What else was set, which depends on how one trains."""
    rates = [f"{run.trunk_learning_rate:g} (trunk)"]
    if run.arm == "xml":
        rates.append(f"{run.prototypes_learning_rate:g} (its prototypes)")
    rates.append(f"{run.embedder_learning_rate:g} (embedder)")
    if LOSSES[run.loss].learning_rate is not None:
        rates.append(f"{LOSSES[run.loss].learning_rate:g} (loss)")
    return [
        f"# Adam's learning rates: {', '.join(rates)}.",
        f"# Schedule: {run.schedule}, at most {run.iterations} iterations, the best of each "
        f"{run.iterations_per_epoch} chosen by validation.",
    ]


class _Code(str):
    """Code, whose repr is itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _call(module: str, constructor: partial[Any], **more: Any) -> str:
    return f"{module}.{constructor.func.__name__}({_arguments(**more, **constructor.keywords)})"


def _arguments(*positional: str, **keywords: Any) -> str:
    return ", ".join([*positional, *(f"{name}={value!r}" for name, value in keywords.items())])


def _default(class_: type, parameter: str) -> Any:
    return inspect.signature(class_).parameters[parameter].default
