import pytest

from pml_xbml import cli
from pml_xbml.benchmarker.fresh_folder import FreshFolder


def test_what_was_there_stays_and_what_is_new_goes(tmp_path):
    folder = tmp_path / "experiments" / "name"
    (folder / "old").mkdir(parents=True)
    (folder / "notes.txt").symlink_to("nowhere")
    fresh = FreshFolder(str(folder))
    (folder / "old" / "new.txt").touch()
    (folder / "new" / "deep").mkdir(parents=True)
    (folder / "new" / "deep" / "new.txt").touch()
    (folder / "new" / "link").symlink_to(tmp_path)
    fresh.remove_what_is_new()
    assert sorted(path.name for path in folder.rglob("*")) == ["notes.txt", "old"]


def test_folders_above_go_with_it_unless_others_use_them(tmp_path):
    fresh = FreshFolder(str(tmp_path / "experiments" / "name"))
    (tmp_path / "experiments" / "name").mkdir(parents=True)
    (tmp_path / "experiments" / "other").mkdir()
    fresh.remove_what_is_new()
    assert [path.name for path in (tmp_path / "experiments").iterdir()] == ["other"]
    (tmp_path / "experiments" / "other").rmdir()
    fresh.remove_what_is_new()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "wrong", "right", "message"),
    [
        (
            "--loss_funcs",
            "{metric_loss: {CrossBatchPrototypeLoss: {cross_batch_weight: 3}}}",
            "{metric_loss: {CrossBatchPrototypeLoss: {cross_batch_weight: 0.3}}}",
            "cross_batch_weight must lie in [0, 1], got 3",
        ),
        # These raise a TypeError and an AssertionError.
        (
            "--loss_funcs",
            "{metric_loss: {CrossBatchPrototypeLoss: {ridge: much}}}",
            "{metric_loss: {CrossBatchPrototypeLoss: {ridge: 1}}}",
            "loss: ridge must be a number, got 'much'",
        ),
        (
            "--sampler~OVERRIDE~",
            "{MPerClassSampler: {m: 4, batch_size: 30}}",
            "{MPerClassSampler: {m: 4, batch_size: 32}}",
            "sampler: ",
        ),
        (
            "--trainer",
            "{MetricLossOnly: {batch_size: 30}}",
            "{MetricLossOnly: {batch_size: 32}}",
            "batch_size must be a multiple of 2 * m = 8",
        ),
    ],
)
def test_the_corrected_command_finds_the_folder_free(
    tmp_path, capsys, no_training, flag, wrong, right, message
):
    command = [
        "benchmark", "--root_experiment_folder", f"{tmp_path}/experiments",
        "--dataset_root", f"{tmp_path}/datasets", "--experiment_name", "name",
        "--check_untrained_accuracy", "False", flag,
    ]  # fmt: skip
    assert cli.main([*command, wrong]) == 2
    output = capsys.readouterr().err
    assert f"pml-xbml benchmark: error: {message}" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not any(tmp_path.iterdir())
    with pytest.raises(AssertionError, match="training began"):
        cli.main([*command, right])


def test_an_experiment_in_training_is_kept(run, no_training, tmp_path):
    arguments = ("--experiment_name", "name", "--check_untrained_accuracy", "False")
    with pytest.raises(AssertionError, match="training began"):
        run(*arguments)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert tmp_path / "experiments" / "name" / "configs" / "config_protocol.yaml" in files
    with pytest.raises(FileExistsError, match="There is an experiment in"):
        run(*arguments)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
