"""Wraps a small network of every family and compares what comes out with the plain network.

    python -m tests.trunks.sweep [--table FILE] [NAME ...]

takes one network of each module of timm, one of each torchvision classification family and those of
pretrainedmodels (or the NAMEs), with random weights and perturbed norms and statistics, and prints a table:
the network, the verdict, the pool that was found. A network must be right, or refused when it is wrapped with
a message that names candidates. It takes about half an hour on one core; ``test_sweep.py`` runs a part of it.
With ``--table`` the rows are appended to a file, and networks that have a row there are not run again.

The reference does not know how the package finds a pool: it is what the head gets, if that is the
average itself, or else the mean of ``forward_features`` if the head's output depends on this mean alone.
Where a class token or attention pools, it is the mean of the patch tokens.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import logging
import sys
import warnings
from pathlib import Path

import pretrainedmodels
import timm
import torch
import torchvision
from torch import nn

from pml_xbml.trunks import PrototypePoolingTrunk

# Names of small variants, from the smallest on.
SMALL = (
    "test_", "atto", "femto", "pico", "nano", "xxxs", "xxs", "xxt", "micro", "mini", "tiny", "_ti", "xt",
    "xs", "050", "s0", "_t", "_m0", "_b0", "small", "18", "_s", "_xx", "lite", "26", "34", "50", "_b",
)  # fmt: skip
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
PRETRAINEDMODELS = (
    "alexnet", "bninception", "cafferesnet101", "densenet121", "dpn68", "fbresnet152", "inceptionresnetv2",
    "inceptionv3", "inceptionv4", "nasnetamobile", "pnasnet5large", "polynet", "resnet18", "resnext101_32x4d",
    "se_resnet50", "se_resnext50_32x4d", "senet154", "squeezenet1_1", "vgg11", "xception",
)  # fmt: skip
# Networks in which the search has to tell apart what looks alike.
HARD = ("pit_ti_224", "pit_ti_distilled_224", "coat_tiny", "coat_lite_tiny", "selecsls42b", "crossvit_9_240",
        "efficientvim_m1", "efficientvim_m1_dist", "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050",
        "mobilenetv3_large_100", "vit_tiny_patch16_224")  # fmt: skip


def timm_families() -> list[str]:
    """A small model of each module of timm, in the order of the modules."""
    families = collections.defaultdict(list)
    for name in timm.list_models():
        families[timm.models.model_entrypoint(name).__module__].append(name)
    return [min(names, key=_expected_size) for _, names in sorted(families.items())]


def _expected_size(name: str) -> tuple[int, int, str]:
    rank = next((i for i, mark in enumerate(SMALL) if mark in name), len(SMALL))
    return rank, len(name), name


def build(name: str) -> nn.Module:
    library, _, model = name.rpartition("/")
    if library == "torchvision":
        options = {"init_weights": False} if model in ("googlenet", "inception_v3", "vgg11") else {}
        return torchvision.models.get_model(model, weights=None, **options)
    if library == "pretrainedmodels":
        return getattr(pretrainedmodels, model)(pretrained=None)
    return timm.create_model(model, pretrained=False)


def perturb(network: nn.Module) -> None:
    """So that a norm or a running statistic that is left out, or run twice, shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator))


def image_size(name: str, network: nn.Module) -> int:
    config = getattr(network, "pretrained_cfg", None)
    if isinstance(config, dict):
        return int(config["input_size"][-1])
    return (
        331 if name.endswith(("large", "polynet")) else 299 if "ception" in name and "bn" not in name else 224
    )


@torch.no_grad()
def references(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the wrapped network may give, by where it comes from."""
    found: dict[str, torch.Tensor] = {}
    names = ("pre_classifier", "fc", "last_linear", "classifier", "head", "heads", "classif", "linear")
    heads = (getattr(network, name, None) for name in names)
    last = [m for head in heads if isinstance(head, nn.Module) for m in head.modules()]
    # What works on the average: a norm, a hidden layer or the classifier itself.
    layers = [m for m in last if any(True for _ in m.parameters(recurse=False))]
    inputs: list[torch.Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for m in layers]
    network(images)
    for handle in handles:
        handle.remove()
    vectors = [value.flatten(1) for value in inputs if value.shape[1:].numel() == value.shape[1]]
    if vectors:
        found["head's input"] = vectors[0]
    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        features = network.forward_features(images)
        if not isinstance(features, torch.Tensor) or features.dim() not in (3, 4):
            return found
        prefix = getattr(network, "num_prefix_tokens", 0) or sum(
            getattr(network, token, None) is not None for token in ("cls_token", "dist_token")
        )
        if features.dim() == 3:
            local, dims, prefix = features[:, prefix:], (1,), prefix
        else:
            dims = (1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else (2, 3)
            local, prefix = features, 0
        mean = local.mean(dims, keepdim=True)
        if prefix or getattr(network, "attn_pool", None) is not None:
            found["patch tokens' mean"] = mean.flatten(1)
        elif _same(network.forward_head(mean.expand_as(local).contiguous()), network.forward_head(features)):
            found["features' mean"] = mean.flatten(1)
    elif not inputs or type(network).__name__ == "VisionTransformer":
        tokens: list[torch.Tensor] = []
        if hasattr(network, "encoder"):
            handle = network.encoder.register_forward_hook(lambda *call: tokens.append(call[-1]))
            network(images)
            handle.remove()
            found["patch tokens' mean"] = tokens[0][:, 1:].mean(1)
    return found


def _same(output: torch.Tensor, expected: torch.Tensor) -> bool:
    if isinstance(output, tuple):
        output, expected = output[0], expected[0]
    scale = float(expected.abs().max())
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=1e-3, atol=1e-4 * scale)


def verdict(name: str) -> tuple[str, str]:
    """Wraps the network: "right", "refused" or "WRONG …", and where its pool was found, or why not."""
    torch.manual_seed(0)
    network = build(name).eval()
    perturb(network)
    size = image_size(name, network)
    images = torch.randn(2, 3, size, size)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = references(network, images)
    try:
        trunk = PrototypePoolingTrunk(network, num_prototypes=4)
    except ValueError as error:
        unharmed = network.state_dict().keys() == state.keys()
        names_candidates = "andidates are" in str(error)
        if not (unharmed and names_candidates):
            return f"WRONG: refused {'without candidates' if unharmed else 'and changed'}", str(error)
        return "refused", str(error).partition("local features: ")[2].partition(". Candidates")[0]
    where = trunk._location.pool or trunk._location.features.__name__
    with torch.no_grad():
        output = trunk(images)
        matches = [source for source, value in expected.items() if _same(output, value)]
    try:
        trunk.train()(images)
    except Exception as error:
        return f"WRONG: {type(error).__name__} in training", where
    return ("right" if matches else f"WRONG: none of {list(expected)}"), f"{where} = {', '.join(matches)}"


def main(names: list[str], table: Path | None = None) -> int:
    """Prints a row for each network and the counts of each library; returns the number of wrong ones."""
    rows = table.read_text().splitlines() if table is not None and table.exists() else []
    done = {row.split()[0] for row in rows}
    for name in names:
        if name in done:
            continue
        try:
            result, where = verdict(name)
        except Exception as error:
            result, where = f"WRONG: {type(error).__name__}", str(error)
        rows.append(f"{name:45} {result:10} {' '.join(where.split())[:150]}")
        print(rows[-1], flush=True)
        if table is not None:
            table.write_text("\n".join(rows) + "\n")
    counts: collections.defaultdict[str, collections.Counter[str]]
    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        name, result, *_ = row.split()
        counts[name.rpartition("/")[0] or "timm"][result.rstrip(":")] += 1
    for library, verdicts in counts.items():
        version = importlib.metadata.version(library)
        numbers = ", ".join(f"{number} {kind}" for kind, number in verdicts.items())
        print(f"{library} {version}: {verdicts.total()} networks, {numbers}")
    return sum(verdicts["WRONG"] for verdicts in counts.values())


def all_names() -> list[str]:
    return list(dict.fromkeys([
        *timm_families(), *HARD,
        *(f"torchvision/{name}" for name in TORCHVISION),
        *(f"pretrainedmodels/{name}" for name in PRETRAINEDMODELS),
    ]))  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("PML").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(prog="python -m tests.trunks.sweep")
    parser.add_argument("--table", type=Path, help="continues this table")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks, such as torchvision/resnet18")
    arguments = parser.parse_args()
    sys.exit(main(arguments.names or all_names(), arguments.table))
