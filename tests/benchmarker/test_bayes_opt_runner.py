import sys

import pytest
import yaml
from pytorch_metric_learning import trainers

from pml_xbml.benchmarker import bayes_opt_runner


@pytest.fixture
def search(run, small_run):
    return lambda name, *arguments: run(
        "--experiment_name", name, *small_run,
        "--num_epochs_train", "1",
        "--hook_container", "{HookContainer: {picture_interval: null}}",
        "--check_untrained_accuracy", "False",
        "--optimizers", "{trunk_optimizer: {Adam: {lr~LOG_BAYESIAN~: [0.0001, 0.01]}}}",
        *arguments,
    ) / "experiments" / name  # fmt: skip


def test_search_finds_the_best_trial_and_goes_on_where_it_was(search, logs):
    # One epoch of one fold a trial.
    short = (
        "--split_manager",
        "{ClassDisjointSplitManager: {num_training_partitions: 2, num_training_sets: 1}}",
    )
    search("search", "--bayes_opt_iters", "1", *short)
    folder = search("search", "--bayes_opt_iters", "2", *short)
    trials = logs.database(folder / "bayes_opt_record_keeper_logs" / "logs.db", "bayes_opt")
    assert [trial["trial_index"] for trial in trials] == [0, 1]
    rates = [trial["optimizers_trunk_optimizer_Adam_lr"] for trial in trials]
    assert len(set(rates)) == 2
    assert all(0.0001 <= rate <= 0.01 for rate in rates)
    best_trial = max(trials, key=lambda trial: trial["mean_average_precision_at_r"])
    best = yaml.safe_load((folder / "best_parameters.yaml").read_text())
    assert best["best_sub_experiment_name"] == f"search{best_trial['trial_index']}"
    trained = yaml.safe_load(
        (folder / best["best_sub_experiment_name"] / "configs" / "config_protocol.yaml").read_text()
    )
    rate = best["best_parameters"]["optimizers/trunk_optimizer/Adam/lr"]
    assert trained["optimizers"]["trunk_optimizer"]["Adam"]["lr"] == rate
    (report,) = folder.glob("report_MeanAggregator_*.yaml")
    assert "trained" in yaml.safe_load(report.read_text())


def test_trials_that_diverge_count_as_zero_and_other_errors_come_out(search, monkeypatch, caplog):
    error = ValueError("the embeddings are not finite")

    def calculate_loss(*_):
        raise error

    monkeypatch.setattr(trainers.MetricLossOnly, "calculate_loss", calculate_loss)
    monkeypatch.setattr(bayes_opt_runner.BayesOptRunner, "test_model", lambda *_: None)
    monkeypatch.setattr(bayes_opt_runner.BayesOptRunner, "create_accuracy_report", lambda *_: None)
    folder = search("diverging", "--bayes_opt_iters", "1")
    best = yaml.safe_load((folder / "best_parameters.yaml").read_text())
    assert best["best_values"]["mean_average_precision_at_r"]["mean"] == 0
    assert str(error) in caplog.text
    error = ValueError("something else is wrong")
    with pytest.raises(ValueError, match="something else is wrong"):
        search("failing", "--bayes_opt_iters", "1")


def test_a_search_that_has_not_trained_is_not_in_the_way_of_the_corrected_one(search, no_training, tmp_path):
    with pytest.raises(ValueError, match="did you mean val"):
        search("search", "--bayes_opt_iters", "1", "--splits_to_eval", "[vla]")
    assert not any(tmp_path.iterdir())
    # The second try finds a trial that has begun, which is kept.
    for _ in range(2):
        with pytest.raises(AssertionError, match="training began"):
            search("search", "--bayes_opt_iters", "1")
        assert (tmp_path / "experiments" / "search" / "search0" / "configs").is_dir()


def test_ax_is_left_as_it_was():
    from ax.service.ax_client import AxClient
    from ax.service.utils import best_point

    assert AxClient.__module__ == "ax.service.ax_client"
    assert not hasattr(best_point, "get_best_raw_objective_point")
    assert "ax.modelbridge" not in sys.modules
