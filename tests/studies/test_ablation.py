from types import SimpleNamespace

import pytest

from pml_xbml.comparison.result import PRIMARY_METRIC
from tests.studies import ablation
from tests.studies.ablation_loss import ablation_loss


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the training: plain runs reach 0.5 and 0.4, the others half a tenth more."""
    calls = []

    def run_all(runs, folder, jobs, split, make_loss):
        assert split == "validation"
        assert make_loss is ablation_loss
        calls.append(folder.name)
        gain = 0.05 * (runs[0].cross_batch_weight is not None)
        return [SimpleNamespace(validation={PRIMARY_METRIC: 0.5 - 0.1 * run.seed + gain}) for run in runs]

    monkeypatch.setattr(ablation, "run_all", run_all)
    monkeypatch.setattr(ablation, "load_splits", lambda *arguments, **options: None)
    return calls


def test_the_table_has_a_row_a_variant_beside_plain_training(calls, capsys, tmp_path):
    ablation.main(["--seeds", "2", "--out", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(calls) == len(ablation.VARIANTS)
    assert rows[0] == "| 0 | plain | training | 45.00 | | | |"
    # 5 points of 45, the same for both seeds, so that the interval has no width.
    assert rows[2].endswith("| 50.00 | +11.1% | +11.1% to +11.1% | 2 of 2 |")


def test_variants_are_chosen_by_number_and_bring_their_plain_partner(calls, tmp_path):
    ablation.main(["--seeds", "2", "--only", "2", "--out", str(tmp_path)])
    assert calls == [ablation.PLAIN_VARIANT.folder, ablation.VARIANTS[2].folder]
    calls.clear()
    [large] = [
        number
        for number, variant in enumerate(ablation.VARIANTS)
        if variant.run == ablation.BATCH_OF_128 and variant is not ablation.PLAIN_BATCH_OF_128
    ]
    ablation.main(["--seeds", "2", "--only", str(large), "--out", str(tmp_path)])
    assert calls == [ablation.PLAIN_BATCH_OF_128.folder, ablation.VARIANTS[large].folder]


def test_the_loss_is_that_of_every_run():
    for variant in ablation.VARIANTS:
        assert [run.loss for run in variant.runs(2, loss="triplet")] == ["triplet", "triplet"]


def test_seeds_start_where_they_are_told_to():
    runs = ablation.PLAIN_VARIANT.runs(num_seeds=7, first_seed=3)
    assert [run.seed for run in runs] == [3, 4, 5, 6, 7, 8, 9]


def test_seeds_of_the_command_line_reach_the_runs(calls, capsys, tmp_path):
    ablation.main(["--seeds", "1", "--first-seed", "2", "--only", "0", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == "| 0 | plain | training | 30.00 | | | |"
