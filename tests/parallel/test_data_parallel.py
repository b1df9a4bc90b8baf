import pytest
import torch
from pytorch_metric_learning import losses

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling


@pytest.fixture
def pooling():
    return PrototypePooling(num_features=6, num_prototypes=4)


@pytest.fixture
def feature_maps():
    return torch.randn(8, 6, 3, 3)


def replica_of(pooling):
    """What `torch.nn.DataParallel` runs on each of several devices; its parameters come by broadcast."""
    replica = pooling._replicate_for_data_parallel()
    replica.prototypes = pooling.prototypes.clone()
    return replica


def test_a_replica_in_training_says_what_to_use_instead(pooling, feature_maps):
    with pytest.raises(ValueError, match=r"DataParallel on several devices.*DistributedDataParallel"):
        replica_of(pooling)(feature_maps)
    with pytest.raises(ValueError, match="no forward has run"):
        CrossBatchPrototypeLoss(pooling=pooling)(torch.randn(8, 4), torch.arange(8) // 2)


def test_a_replica_in_evaluation_mode_averages(pooling, feature_maps):
    average = replica_of(pooling.eval())(feature_maps)
    torch.testing.assert_close(average, feature_maps.mean((2, 3)))


def test_one_device_works(pooling, feature_maps):
    labels = torch.arange(8) // 2
    pooled = pooling(feature_maps)
    expected = CrossBatchPrototypeLoss(losses.TripletMarginLoss(), pooling=pooling)(pooled, labels)
    expected_gradient = torch.autograd.grad(expected, pooling.prototypes)

    parallel = torch.nn.DataParallel(pooling)
    loss = CrossBatchPrototypeLoss(losses.TripletMarginLoss(), pooling=parallel)(
        parallel(feature_maps), labels
    )
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, pooling.prototypes), expected_gradient, rtol=0, atol=0
    )
