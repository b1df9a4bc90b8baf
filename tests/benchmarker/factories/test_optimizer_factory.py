import pytest
import torch
from pytorch_metric_learning import losses

from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk


@pytest.fixture
def create(getter):
    factory = getter.get("factory", class_name="OptimizerFactory", params={"getter": getter})
    trunk = PrototypePoolingTrunk(SmallTrunk(), num_prototypes=4)
    models, loss_funcs = (
        {"trunk": trunk, "embedder": torch.nn.Linear(2, 2)},
        {"metric_loss": losses.ContrastiveLoss()},
    )

    def create_all(specs):
        for _ in range(2):  # powerful-benchmarker builds from the same configs for each fold
            created = factory.create(named_specs=specs, kwargs={"param_sources": [models, loss_funcs]})
        return models, created

    return create_all


def test_prototypes_have_their_own_learning_rate(create):
    models, (optimizers, _, _) = create({"trunk_optimizer": {"RMSprop": {"lr": 1e-6}, "prototypes_lr": 0.01}})
    others, prototypes = optimizers["trunk_optimizer"].param_groups
    assert (others["lr"], prototypes["lr"]) == (1e-6, 0.01)
    assert [id(p) for p in prototypes["params"]] == [id(models["trunk"].prototypes)]
    expected = {id(p) for p in models["trunk"].parameters()} - {id(models["trunk"].prototypes)}
    assert {id(p) for p in others["params"]} == expected


def test_models_without_prototypes_do_without_the_rate(create):
    _, (optimizers, _, _) = create({"embedder_optimizer": {"Adam": {"lr": 0.1}, "prototypes_lr": 0.01}})
    (group,) = optimizers["embedder_optimizer"].param_groups
    assert group["lr"] == 0.1


def test_a_loss_without_parameters_has_no_optimizer(create):
    _, (optimizers, _, _) = create(
        {"embedder_optimizer": {"Adam": {}}, "metric_loss_optimizer": {"Adam": {"lr": 0.01}}}
    )
    assert list(optimizers) == ["embedder_optimizer"]


def test_schedulers_and_clippers_work_in_every_fold(create):
    models, (optimizers, schedulers, clippers) = create(
        {
            "embedder_optimizer": {
                "SGD": {"lr": 1.0},
                "scheduler_by_epoch": {"StepLR": {"step_size": 1, "gamma": 0.5}},
                "clip_grad_norm": 2.0,
            }
        }
    )
    assert list(schedulers) == ["embedder_scheduler_by_epoch"]
    assert list(clippers) == ["embedder_grad_clipper"]
    for parameter in models["embedder"].parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    clippers["embedder_grad_clipper"]()
    norm = torch.cat([parameter.grad.flatten() for parameter in models["embedder"].parameters()]).norm()
    assert norm.item() == pytest.approx(2.0, rel=1e-4)
    optimizers["embedder_optimizer"].step()
    schedulers["embedder_scheduler_by_epoch"].step()
    assert optimizers["embedder_optimizer"].param_groups[0]["lr"] == 0.5


def test_an_optimizer_of_nothing_is_named(create):
    with pytest.raises(
        ValueError, match=r"'embeder_optimizer' belongs to no model or loss; .*embedder_optimizer"
    ):
        create({"embeder_optimizer": {"Adam": {}}})
