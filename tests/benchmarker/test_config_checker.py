from types import SimpleNamespace

import pytest
from pytorch_metric_learning import trainers

from pml_xbml import cli
from pml_xbml.benchmarker.config_checker import ConfigChecker
from pml_xbml.benchmarker.runner import SingleExperimentRunner


@pytest.fixture
def error_of(tmp_path, capsys, no_training):
    """The one line that the command ends with, which has made nothing."""

    def run(*arguments):
        roots = ["--root_experiment_folder", f"{tmp_path}/experiments", "--dataset_root", f"{tmp_path}/data"]
        assert cli.main(["benchmark", *roots, "--experiment_name", "name", *arguments]) == 2
        assert not any(tmp_path.iterdir())
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--models", "{trnk: {PrototypePoolingTrunk: {}}}"],
            "keys of models must be among trunk, embedder, got 'trnk'; did you mean trunk?",
        ),
        (
            ["--transforms", "{trian: {Resize: {size: 3}}}"],
            "got 'trian'; did you mean train?",
        ),
        (
            ["--loss_funcs", "{metric_los: {ContrastiveLoss: {}}}"],
            "keys of loss_funcs must be among metric_loss, got 'metric_los'; did you mean metric_loss?",
        ),
        # PML would take it for its beginning.
        (["--loss_funcs", "{metric_losses: {ContrastiveLoss: {}}}"], "did you mean metric_loss?"),
        (
            ["--mining_funcs", "{tuple_minr: {MultiSimilarityMiner: {}}}"],
            "got 'tuple_minr'; did you mean tuple_miner?",
        ),
        (
            ["--optimizers", "{trunk_optimiser: {Adam: {lr: 0.1}}}"],
            "got 'trunk_optimiser'; did you mean trunk_optimizer?",
        ),
        (["--factories", "{modle: {ModelFactory: {}}}"], "got 'modle'; did you mean model?"),
        (
            ["--trainer", "{MetricLossOnly: {freeze_these: [trnk]}}"],
            "freeze_these of the trainer must be among trunk, embedder, metric_loss, got 'trnk'; did you",
        ),
        (
            ["--trainer", "{MetricLossOnly: {loss_weights: {metric_los: 1}}}"],
            "loss_weights of the trainer must be among metric_loss, got 'metric_los'; did you mean",
        ),
        (
            ["--splits_to_eval", "[tset]"],
            "splits_to_eval must be among train, val, test, got 'tset'; did you mean test?",
        ),
        (
            ["--hook_container", "{HookContainer: {validation_split_name: vall}}"],
            "validation_split_name must be among train, val, test, got 'vall'; did you mean val?",
        ),
        (
            ["--aggregator", "{MeanAggregator: {split_to_aggregate: tets}}"],
            "split_to_aggregate must be among train, val, test, got 'tets'; did you mean test?",
        ),
        (
            ["--hook_container", "{HookContainer: {primary_metric: mean_avrage_precision_at_r}}"],
            "got 'mean_avrage_precision_at_r'; did you mean mean_average_precision_at_r?",
        ),
        # A metric that exists, but is not computed.
        (
            ["--hook_container", "{HookContainer: {primary_metric: NMI}}"],
            "must be among mean_average_precision_at_r, precision_at_1, r_precision, got 'NMI'",
        ),
        (
            [
                "--tester",
                "{GlobalEmbeddingSpaceTester: {accuracy_calculator: {AccuracyCalculator: {exclude: [NMY]}}}}",
            ],
            "exclude of the accuracy_calculator must be among AMI, NMI, ",
        ),
        (
            ["--transforms", "{train: {RandomCropp: {size: 3}}}"],
            "transform: there is no class 'RandomCropp'; did you mean RandomCrop?",
        ),
        (
            ["--transforms", "{eval: {RandomCrop: {sizes: 3}}}"],
            "transform: RandomCrop has no argument 'sizes'; did you mean size?",
        ),
        (
            ["--models", "{trunk: {PrototypePoolingTrunk: {num_prototype: 3}}}"],
            "PrototypePoolingTrunk has no argument 'num_prototype'; did you mean num_prototypes?",
        ),
        (
            ["--models", "{trunk: {PrototypePoolingTrunk: {temprature: 3}}}"],
            "PrototypePoolingTrunk has no argument 'temprature'; did you mean temperature?",
        ),
    ],
)
def test_a_misspelt_name_inside_of_a_key_is_told_with_the_nearest(error_of, arguments, message):
    assert message in error_of(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_epochs_train", "abc"], "num_epochs_train must be an integer from 1 on, got 'abc'"),
        (["--num_epochs_train", "-1"], "num_epochs_train must be an integer from 1 on, got -1"),
        (["--num_epochs_train"], "num_epochs_train must be an integer from 1 on, got no value"),
        (["--save_interval", "0"], "save_interval must be an integer from 1 on, got 0"),
        (
            ["--trainer", "{MetricLossOnly: {iterations_per_epoch: abc}}"],
            "iterations_per_epoch of the trainer must be an integer from 1 on or null, got 'abc'",
        ),
        (
            ["--trainer", "{MetricLossOnly: {batch_size: 0}}"],
            "batch_size of the trainer must be an integer from 1 on, got 0",
        ),
        (["--patience", "soon"], "patience must be an integer from 0 on or null, got 'soon'"),
        (["--save_lists_in_db", "maybe"], "save_lists_in_db must be True or False, got 'maybe'"),
        (["--splits_to_eval", "val"], "splits_to_eval must be a list such as [val], got 'val'"),
        (["--splits_to_eval", "[test]"], "splits_to_eval must hold 'val' in training"),
        (["--models"], "models must be {name: {Class: {argument: value}}}, got no value"),
        (["--optimizers", "{trunk_optimizer: 3}"], "trunk_optimizer of optimizers must be {Class: "),
        (["--transforms", "{train: 3}"], "train of transforms must be {Class: {argument: value}}, got 3"),
        (
            ["--models", "{trunk~OVERRIDE~: {SmallTrunk: 3}}"],
            "the arguments of SmallTrunk must be {argument: value}, got 3",
        ),
        (
            ["--loss_funcs~OVERRIDE~", "{metric_loss: {MultipleLosses: {losses: [ContrastiveLoss]}}}"],
            "losses of MultipleLosses must be {Class: {argument: value}}, got ['ContrastiveLoss']",
        ),
        (
            ["--tester~OVERRIDE~", "{GlobalEmbeddingSpaceTester: {}}"],
            "accuracy_calculator of the tester must be {Class: {argument: value}}, got None",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_what_would_do(error_of, arguments, message):
    assert message in error_of(*arguments)


class OneOfOnesOwn(trainers.MetricLossOnly):
    def __init__(self, number, **options):
        self.number = number
        super().__init__(**options)

    def modify_schema(self):
        self.schema["loss_funcs"].keys = [f"loss_{i}" for i in range(self.number)]


@pytest.mark.parametrize(
    ("trainer", "losses", "accepted"),
    [
        (trainers.CascadedEmbeddings, ["metric_loss_0", "classifier_loss_11"], True),
        (trainers.CascadedEmbeddings, ["metric_loss"], False),
        (trainers.TrainWithClassifier, ["metric_loss", "classifier_loss"], True),
        (trainers.DeepAdversarialMetricLearning, ["metric_loss", "synth_loss", "g_adv_loss"], True),
        (OneOfOnesOwn, ["loss_0"], True),
        (lambda **options: None, ["any"], True),
    ],
)
def test_the_names_of_losses_are_those_of_the_trainer(trainer, losses, accepted):
    args = SimpleNamespace(
        models={"trunk": {}}, loss_funcs=dict.fromkeys(losses), mining_funcs={}, optimizers={}, trainer={}
    )
    checker = ConfigChecker(args, SimpleNamespace(get=lambda *_, **__: (trainer, {})))
    if accepted:
        checker._check_names_of_the_trainer()
    else:
        with pytest.raises(ValueError, match=r"keys of loss_funcs must be among metric_loss_\[0-9\]\+"):
            checker._check_names_of_the_trainer()


def test_each_fold_of_a_reproduction_has_epochs_of_its_own(run, no_training, monkeypatch):
    start = SingleExperimentRunner.start_experiment

    def start_with(epochs):
        def start_experiment(self, args):
            args.num_epochs_train = {f"Test50_50_Partitions4_{fold}": epochs for fold in range(4)}
            return start(self, args)

        monkeypatch.setattr(SingleExperimentRunner, "start_experiment", start_experiment)
        run("--experiment_name", "name", "--check_untrained_accuracy", "False")

    with pytest.raises(ValueError, match="num_epochs_train must be an integer from 1 on, got 'two'"):
        start_with("two")
    with pytest.raises(AssertionError, match="training began"):
        start_with(2)
