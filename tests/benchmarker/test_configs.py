import itertools
import re
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.trainers import MetricLossOnly

from pml_xbml.benchmarker.command_line import _parser
from pml_xbml.benchmarker.pml_compat import pml_compat
from pml_xbml.benchmarker.runner import SingleExperimentRunner, _check_flags
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePoolingTrunk

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "benchmarker_configs"

DATASETS = ["glyphs", "cub200", "cars196", "sop", "in_shop"]
LOSSES = {
    "contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletMarginLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "proxy_anchor": losses.ProxyAnchorLoss,
    "proxy_nca": losses.ProxyNCALoss,
    "contrastive_memory": losses.CrossBatchMemory,
}
PROTOCOLS = ["small", "mlrc", "resnet50"]
PRETRAINED_PROTOCOLS = ["mlrc", "resnet50"]


def flags(dataset, protocol, loss, xml):
    protocols = [protocol, *([f"{protocol}_xml"] if xml else [])]
    return [
        "--config_dataset", f"[{dataset}]",
        "--config_protocol", f"[{', '.join(protocols)}]",
        "--config_loss_and_miners", f"[{loss}_xml]" if xml else f"[{loss}]",
    ]  # fmt: skip


def read(arguments, folder="unused", dataset_root="datasets"):
    """The runner and the merged configs of a command line."""
    runner = SingleExperimentRunner(
        ["--experiment_name", "name", *arguments],
        root_config_folder=str(ROOT),
        root_experiment_folder=str(folder),
        dataset_root=str(dataset_root),
    )
    runner.set_YR()
    args, _, args.dict_of_yamls = runner.YR.load_yamls(
        runner.get_root_config_paths(runner.YR.args),
        max_merge_depth=float("inf"),
        max_argparse_merge_depth=float("inf"),
    )
    return runner, args


@pytest.fixture
def names():
    with pml_compat():
        yield


@pytest.fixture
def built(names, tmp_path, fake_datasets):
    """Builds all that a first fold needs, from the configs of a command line."""

    def build(arguments):
        runner, args = read(arguments, tmp_path, fake_datasets)
        parser = runner.get_api_parser(args)
        parser.check_configs()
        parser.transforms = parser.get_transforms()
        parser.split_manager = parser.get_split_manager()
        parser.save_config_files()
        parser.set_num_epochs_dict()
        parser.make_sub_experiment_dirs()
        parser.set_curr_folders()
        parser.curr_split_count = 0
        parser.set_models_optimizers_losses()
        parser.get_aggregator()
        parser.get_ensemble()
        return parser

    return build


def train_one_iteration(parser):
    trainer = parser.trainer
    trainer.initialize_dataloader()
    trainer.epoch = 1
    trainer.set_to_train()
    before = [parameter.detach().clone() for parameter in trainer.models["trunk"].parameters()]
    # A batch of 8 may happen to keep a triplet loss's margin, and then there is nothing to learn from it.
    for trainer.iteration in range(5):
        trainer.forward_and_backward()
        trainer.end_of_iteration_hook(trainer)
        assert torch.isfinite(trainer.losses["total_loss"])
        if trainer.losses["total_loss"] > 0:
            break
    after = list(trainer.models["trunk"].parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("xml", [False, True], ids=["plain", "xml"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_combination_merges(names, dataset, protocol, xml):
    for loss in LOSSES:
        _, args = read(flags(dataset, protocol, loss, xml))
        (metric_loss,) = args.loss_funcs["metric_loss"]
        assert metric_loss == ("CrossBatchPrototypeLoss" if xml else LOSSES[loss].__name__)
        (trunk,) = args.models["trunk"]
        assert (trunk == "PrototypePoolingTrunk") == xml
        assert len(args.dataset) == len(args.trainer) == len(args.split_manager) == len(args.sampler) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_have_the_defaults_of_the_package(names, loss):
    _, args = read(flags("glyphs", "small", loss, xml=True))
    assert list(args.loss_funcs["metric_loss"]["CrossBatchPrototypeLoss"]) == ["loss"]
    assert list(args.models["trunk"]["PrototypePoolingTrunk"]) == ["trunk"]


def test_commands_of_the_page_merge(names):
    page = (ROOT / "README.md").read_text("utf-8")
    commands = [
        command
        for command in re.findall(r"^pml-xbml benchmark (.*)$", page, re.MULTILINE)
        if "--config_dataset" in command
    ]
    assert len(commands) == 2
    for command in commands:
        for loss in LOSSES:
            _, args = read(command.replace("LOSS", loss).split())
            assert args.loss_funcs
            assert args.models


def test_flags_of_the_page_exist(names):
    page = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"pml-xbml benchmark ([^`#\n]*)", page)
    runner, args = read([])
    keys = {key for config in args.dict_of_yamls.values() for key in config}
    own = {action.dest for action in _parser()._actions}
    known = {
        *vars(runner.setup_argparser().parse_known_args()[0]),
        *args.config_foldernames,
        *keys,
        *own,
        "help",
    }
    assert len(commands) > 5
    for command in commands:
        _check_flags(command.split(), known)


def test_every_file_tells_which_flag_selects_it():
    files = sorted(ROOT.glob("config_*/*.yaml"))
    assert len(files) == 27
    for file in files:
        comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), file.open()))
        assert re.search(rf"--{file.parent.name} \[(\w+, )*{file.stem}[,\]]", comment), file


def test_values_of_the_reality_check(names):
    _, args = read(flags("cub200", "mlrc", "contrastive", xml=False))
    assert args.models == {
        "trunk": {"bninception": {"pretrained": "imagenet"}},
        "embedder": {"MLP": {"layer_sizes": [128]}},
    }
    assert args.trainer["MetricLossOnly"]["batch_size"] == 32
    assert args.sampler == {"MPerClassSampler": {"m": 4}}
    assert args.optimizers["trunk_optimizer"]["RMSprop"]["lr"] == 1e-6
    assert args.split_manager["ClassDisjointSplitManager"]["num_training_sets"] == 4
    assert args.patience == 9
    assert args.hook_container["HookContainer"]["primary_metric"] == "mean_average_precision_at_r"


def test_values_of_the_resnet50_protocol(names):
    _, args = read(flags("cub200", "resnet50", "contrastive", xml=False))
    assert list(args.models["trunk"]) == ["resnet50"]
    assert args.models["embedder"] == {"MLP": {"layer_sizes": [512]}}
    assert args.trainer["MetricLossOnly"]["batch_size"] == 128
    assert args.optimizers["trunk_optimizer"]["Adam"]["lr"] == 1e-5


@pytest.mark.parametrize("xml", [False, True], ids=["plain", "xml"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(built, loss, xml):
    parser = built([*flags("glyphs", "small", loss, xml), "--trainer", "{MetricLossOnly: {batch_size: 8}}"])
    metric_loss = parser.loss_funcs["metric_loss"]
    if xml:
        assert isinstance(metric_loss, CrossBatchPrototypeLoss)
        assert metric_loss.pooling is parser.models["trunk"].module
        assert isinstance(parser.sampler, DisjointClassPairSampler)
        metric_loss = metric_loss.loss
    assert type(metric_loss) is LOSSES[loss]
    assert ("metric_loss_optimizer" in parser.optimizers) == loss.startswith("proxy")
    assert ("tuple_miner" in parser.mining_funcs) == (loss == "multi_similarity")
    train_one_iteration(parser)


def test_prototypes_are_local_features_of_training_images(built):
    parser = built(
        [*flags("glyphs", "small", "contrastive", xml=True), "--trainer", "{MetricLossOnly: {batch_size: 8}}"]
    )
    trunk = parser.models["trunk"].module.eval()
    images = torch.stack([image for image, _ in parser.split_manager.get_dataset("eval", "train")])
    with torch.no_grad():
        feature_maps = torch.nn.Sequential(*list(trunk.trunk)[:-2])(images)
    local_features = feature_maps.movedim(1, -1).flatten(0, -2)
    distances = torch.cdist(
        trunk.prototypes.detach(), local_features, compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert distances.min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize("dataset", DATASETS[1:])
def test_every_data_set_trains(built, dataset):
    parser = built(
        [
            *flags(dataset, "small", "contrastive", xml=True),
            "--config_eval", "[default, with_workers]",
            "--trainer", "{MetricLossOnly: {batch_size: 8}}",
            "--sampler", "{DisjointClassPairSampler: {m: 2}}",
            "--transforms", "{train: {Resize: {size: 16}}, eval: {Resize: {size: 16}}}",
        ]
    )  # fmt: skip
    assert parser.tester.dataloader_num_workers == 2
    train_one_iteration(parser)


RANDOM_WEIGHTS = {
    "mlrc": "bninception: {pretrained: null}",
    "resnet50": "resnet50: {weights: null}",
}


@pytest.mark.parametrize("xml", [False, True], ids=["plain", "xml"])
@pytest.mark.parametrize("protocol", RANDOM_WEIGHTS)
def test_every_protocol_trains(built, protocol, xml):
    network = RANDOM_WEIGHTS[protocol]
    trunk = f"{{PrototypePoolingTrunk: {{trunk: {{{network}}}}}}}" if xml else f"{{{network}}}"
    arguments = [
        *flags("cub200", protocol, "contrastive", xml),
        "--models", f"{{trunk: {trunk}}}",
        "--trainer", "{MetricLossOnly: {batch_size: 4, dataloader_num_workers: 0}}",
        "--sampler", "{DisjointClassPairSampler: {m: 2}}" if xml else "{MPerClassSampler: {m: 2}}",
    ]  # fmt: skip
    if xml or protocol != "mlrc":
        # Smaller images than BN-Inception's own average of 7 x 7 takes.
        arguments += [
            "--transforms",
            "{train: {RandomResizedCrop: {size: 64}}, eval: {CenterCrop: {size: 64}}}",
        ]
    parser = built(arguments)
    assert isinstance(parser.trainer, MetricLossOnly)
    trunk = parser.models["trunk"].module
    assert isinstance(trunk, PrototypePoolingTrunk) == xml
    if xml:
        assert trunk.prototypes.shape[0] == 16
        *_, group = parser.optimizers["trunk_optimizer"].param_groups
        assert group["params"][0] is trunk.prototypes
        assert group["lr"] == {"mlrc": 1e-4, "resnet50": 1e-3}[protocol]
    train_one_iteration(parser)
