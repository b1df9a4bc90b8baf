import inspect

import pytest

from pml_xbml.comparison import Run
from pml_xbml.comparison.run_config import check_same_run


def test_name_shows_what_sets_runs_apart():
    assert Run(seed=3).name == "contrastive_plain_seed-3"
    run = Run(
        loss="triplet",
        variant="xml",
        cross_batch_weight=0.3,
        loss_options={"ridge": 0.5},
        pooling_options={"num_prototypes": 8},
    )
    assert run.name == "triplet_xml_0.3_num_prototypes-8_ridge-0.5_seed-0"


def test_json_gives_the_run_back():
    run = Run(
        variant="xml", cross_batch_weight=0.1, pooling_options={"similarity": "dot"}, train_classes=None
    )
    assert Run.from_json(run.to_json()) == run


def test_every_field_is_documented():
    documentation = inspect.getdoc(Run)
    assert all(
        f"{name}:" in documentation or f"{name}," in documentation
        for name in inspect.signature(Run).parameters
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of contrastive, .*, got 'hinge'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant, got 'linear'"),
        ({"variant": "xml"}, "cross_batch_weight belongs to XML runs alone: got variant='xml' with .*=None"),
        ({"cross_batch_weight": 0.1}, "got variant='plain' with cross_batch_weight=0.1"),
        ({"variant": "xml", "cross_batch_weight": 1.5}, "between 0 and 1, got 1.5"),
        ({"iterations": 250}, "multiple of iterations_per_epoch, got 250 and 100"),
        ({"iterations": 0}, "got 0 and 100"),
        ({"iterations_per_epoch": 0}, "got 800 and 0"),
    ],
)
def test_what_cannot_be_trained_with(fields, message):
    with pytest.raises(ValueError, match=message):
        Run(**fields)


def test_same_run(tmp_path):
    path = tmp_path / "run.json"
    check_same_run(Run(), path)
    path.write_text(Run(loss_options={"ridge": 0.5}).to_json())
    check_same_run(Run(loss_options={"ridge": 0.5}), path)
    with pytest.raises(
        ValueError, match=r"other settings: seed=0 \(now 1\), loss_options={'ridge': 0.5} \(now {}\)"
    ):
        check_same_run(Run(seed=1), path)
