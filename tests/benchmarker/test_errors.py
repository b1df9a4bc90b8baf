import re
import shutil
from pathlib import Path

import pytest
from pytorch_metric_learning import trainers

import pml_xbml
from pml_xbml import cli


@pytest.mark.parametrize(
    ("flag", "value", "wrong", "right"),
    [
        (
            "--loss_funcs~OVERRIDE~",
            "{metric_loss: {ContrastivLoss: {}}}",
            "ContrastivLoss",
            "ContrastiveLoss",
        ),
        (
            "--loss_funcs~OVERRIDE~",
            "{metric_loss: {CrossBatchPrototypeLoss: {loss: {TripletMarginLos: {}}}}}",
            "TripletMarginLos",
            "TripletMarginLoss",
        ),
        (
            "--loss_funcs~OVERRIDE~",
            "{metric_loss: {ContrastiveLoss: {distance: {CosineSimilarty: {}}}}}",
            "CosineSimilarty",
            "CosineSimilarity",
        ),
        (
            "--loss_funcs~OVERRIDE~",
            "{metric_loss: {MultipleLosses: {losses: {ArcFaceLos: {}}}}}",
            "ArcFaceLos",
            "ArcFaceLoss",
        ),
        (
            "--mining_funcs",
            "{tuple_miner: {TripletMarginMinr: {}}}",
            "TripletMarginMinr",
            "TripletMarginMiner",
        ),
        ("--sampler~OVERRIDE~", "{MPerClasSampler: {m: 4}}", "MPerClasSampler", "MPerClassSampler"),
        ("--dataset~OVERRIDE~", "{Glyph: {}}", "Glyph", "Glyphs"),
        ("--models", "{trunk~OVERRIDE~: {resnet05: {}}}", "resnet05", "resnet50"),
        ("--models", "{embedder~OVERRIDE~: {MPL: {}}}", "MPL", "MLP"),
        ("--optimizers", "{trunk_optimizer~OVERRIDE~: {Adm: {lr: 1}}}", "Adm", "Adam"),
        (
            "--optimizers",
            "{trunk_optimizer: {scheduler_by_epoch: {StpLR: {}}}}",
            "StpLR",
            "StepLR",
        ),
        (
            "--ensemble~OVERRIDE~",
            "{ConcatenateEmbedings: {}}",
            "ConcatenateEmbedings",
            "ConcatenateEmbeddings",
        ),
        ("--trainer~OVERRIDE~", "{MetricLosOnly: {}}", "MetricLosOnly", "MetricLossOnly"),
        ("--split_manager~OVERRIDE~", "{MLRCSplitManger: {}}", "MLRCSplitManger", "MLRCSplitManager"),
    ],
)
def test_a_misspelt_class_is_named_before_anything_is_made(
    run, no_training, tmp_path, flag, value, wrong, right
):
    with pytest.raises(ValueError, match=rf"no class '(API)?{wrong}'; did you mean (API)?{right}"):
        run("--experiment_name", "name", flag, value)
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        (
            "--trainer", "{MetricLossOnly: {iteration_per_epoch: 3}}",
            "MetricLossOnly has no argument 'iteration_per_epoch'; did you mean iterations_per_epoch",
        ),
        (
            "--loss_funcs", "{metric_loss: {CrossBatchPrototypeLoss: {weight: 0.3}}}",
            "CrossBatchPrototypeLoss has no argument 'weight'; did you mean cross_batch_weight",
        ),
        (
            "--loss_funcs~OVERRIDE~",
            "{metric_loss: {CrossBatchMemory: {memory_size: 8, loss: {ContrastiveLoss: {pos_margn: 0}}}}}",
            "ContrastiveLoss has no argument 'pos_margn'; did you mean pos_margin",
        ),
        (
            "--hook_container", "{HookContainer: {picture_intervall: 2}}",
            "HookContainer has no argument 'picture_intervall'; did you mean picture_interval",
        ),
        (
            "--optimizers", "{trunk_optimizer: {Adam: {lrr: 0.1}}}",
            "Adam has no argument 'lrr'; did you mean lr",
        ),
        (
            "--optimizers", "{trunk_optimizer: {prototype_lr: 0.1}}",
            "trunk_optimizer has no option 'prototype_lr'; did you mean prototypes_lr",
        ),
        (
            "--split_manager", "{ClassDisjointSplitManager: {testsize: 0.5}}",
            "ClassDisjointSplitManager has no argument 'testsize'; did you mean test_size",
        ),
    ],
)  # fmt: skip
def test_a_misspelt_argument_is_named_before_anything_is_made(
    run, no_training, tmp_path, flag, value, message
):
    with pytest.raises(ValueError, match=message):
        run("--experiment_name", "name", flag, value)
    assert not (tmp_path / "experiments").exists()


def test_a_misspelt_key_of_a_yaml_file_is_named_and_others_pass(run, no_training, tmp_path):
    root = tmp_path / "configs"
    shutil.copytree(Path(pml_xbml.__file__).with_name("benchmarker_configs"), root)
    mine = root / "config_protocol" / "mine.yaml"
    arguments = [
        "--root_config_folder", str(root), "--experiment_name", "name",
        "--config_protocol", "[small, small_xml, mine]", "--check_untrained_accuracy", "False",
    ]  # fmt: skip
    mine.write_text("num_epoch_train: 1\n")
    with pytest.raises(ValueError, match=r"'num_epoch_train'.*did you mean num_epochs_train\?"):
        run(*arguments)
    mine.write_text("layers_to_extract: [1]\n")
    with pytest.raises(AssertionError, match="training began"):
        run(*arguments)


def test_two_classes_where_one_is_wanted_are_named(run, no_training):
    with pytest.raises(ValueError, match=r"sampler: give one class.*MPerClassSampler.*~OVERRIDE~"):
        run("--experiment_name", "name", "--sampler", "{MPerClassSampler: {m: 4}}")


def test_a_missing_yaml_file_is_named(run, no_training, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config_dataset.*cub2000.yaml.*cars196, cub200, glyphs"):
        run("--experiment_name", "name", "--config_dataset", "[cub2000]")
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("config", "name", "folder"),
    [
        ("cub200", "CUB", "cub"),
        ("cars196", "Cars196", "cars196"),
        ("sop", "StanfordOnlineProducts", "sop"),
        ("in_shop", "InShop", "in_shop"),
    ],
)
def test_a_data_set_that_is_not_there_is_named(run, no_training, tmp_path, config, name, folder):
    with pytest.raises(FileNotFoundError, match=rf"{name} is not there.*datasets/{folder}"):
        run("--experiment_name", "name", "--config_dataset", f"[{config}]")
    # Nothing in the way of the next try.
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("flags", [["--resume_training", "latest"], ["--evaluate"], ["--evaluate_ensemble"]])
def test_an_experiment_that_is_not_there_is_named(run, flags):
    with pytest.raises(FileNotFoundError, match=r"no experiment.*experiments/unknown"):
        run("--experiment_name", "unknown", *flags)


def test_an_experiment_to_reproduce_that_is_not_there_is_named(run, no_training):
    with pytest.raises(FileNotFoundError, match=r"no experiment.*somewhere"):
        run("--experiment_name", "name", "--reproduce_results", "somewhere")


def test_a_key_of_no_yaml_file_is_named_with_the_nearest_before_training(run, no_training):
    with pytest.raises(ValueError, match=r"--num_epoch_train must be .*did you mean --num_epochs_train\?"):
        run("--experiment_name", "name", "--num_epoch_train", "1")
    with pytest.raises(AssertionError, match="training began"):
        run("--experiment_name", "name", "--check_untrained_accuracy", "False")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_protocol", "smal"], "there are .*small"),
        (["--evaluate"], "no experiment with saved configs"),
        (["--num_epoch_train", "1"], "did you mean --num_epochs_train"),
        (["--dataset_roots", "here"], r"did you mean --dataset_root\?"),
        (["--sampler~OVERRIDE~", "{MPerClasSampler: {m: 4}}"], "did you mean MPerClassSampler"),
        # The reader of YAML files tells this in two lines.
        (["--models", "{trunk: {SmallTrunk:{}}"], "a space after the colon.* Command line bracket imbalance"),
    ],
)
def test_the_command_tells_a_users_error_in_one_line(flags, message, tmp_path, capsys, no_training):
    roots = ["--root_experiment_folder", f"{tmp_path}/a", "--dataset_root", f"{tmp_path}/b"]
    assert cli.main(["benchmark", *roots, "--experiment_name", "name", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.match(rf"pml-xbml benchmark: error: .*{message}", lines[-1])
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("message", ["row 3 of the embeddings is NaN", "something else is wrong"])
def test_an_error_in_training_comes_out_whole(run, small_run, monkeypatch, message):
    error = ValueError(message)

    def calculate_loss(*_):
        raise error

    monkeypatch.setattr(trainers.MetricLossOnly, "calculate_loss", calculate_loss)
    with pytest.raises(ValueError, match=message) as raised:
        run("--experiment_name", "name", *small_run, "--check_untrained_accuracy", "False")
    assert raised.value is error
    assert "calculate_loss" in [entry.name for entry in raised.traceback]


def test_reference_sets_of_old_configs_are_refused(run, no_training):
    with pytest.raises(ValueError, match=r"reference_set is 'compared_to_training_set'"):
        run(
            "--experiment_name", "name",
            "--tester", "{GlobalEmbeddingSpaceTester: {reference_set: compared_to_training_set}}",
        )  # fmt: skip
