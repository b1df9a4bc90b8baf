import pytest
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling


@pytest.fixture
def create(getter):
    """Builds a loss of a run with 7 classes, embeddings of 16 dimensions, and a pooling."""
    factory = getter.get("factory", class_name="LossFactory", params={"getter": getter})
    pooling = PrototypePooling(32, 4)

    def create_one(name, arguments):
        specs = {"metric_loss": {name: arguments}}
        told = {"num_classes": 7, "embedding_size": 16, "pooling": pooling}
        for _ in range(2):  # powerful-benchmarker builds from the same configs for each fold
            loss = factory.create(named_specs=specs, kwargs=told)["metric_loss"]
        return loss, pooling

    return create_one


def test_nested_loss_has_its_own_distance_reducer_and_regularizer(create):
    loss, pooling = create(
        "CrossBatchPrototypeLoss",
        {
            "loss": {
                "TripletMarginLoss": {
                    "margin": 0.3,
                    "distance": {"CosineSimilarity": None},
                    "reducer": {"ThresholdReducer": {"low": 0.1}},
                    "embedding_regularizer": {"LpRegularizer": {"p": 1}},
                }
            },
            "embedding_regularizer": {"LpRegularizer": {}},
            "cross_batch_weight": 0.2,
            "ridge": 0.3,
        },
    )
    assert isinstance(loss, CrossBatchPrototypeLoss)
    assert (loss.cross_batch_weight, loss.ridge) == (0.2, 0.3)
    assert loss.pooling is pooling
    assert isinstance(loss.embedding_regularizer, regularizers.LpRegularizer)
    assert isinstance(loss.loss, losses.TripletMarginLoss)
    assert loss.loss.margin == 0.3
    assert isinstance(loss.loss.distance, distances.CosineSimilarity)
    # PML uses one reducer for the loss, and one like it for the regularizer.
    assert isinstance(loss.loss.reducer.reducers["loss"], reducers.ThresholdReducer)
    assert loss.loss.embedding_regularizer.p == 1


def test_loss_of_expressed_embeddings(create):
    loss, _ = create(
        "CrossBatchPrototypeLoss",
        {
            "loss": {"ProxyNCALoss": {"softmax_scale": 9}},
            "expressed_loss": {"ContrastiveLoss": {"neg_margin": 0.7}},
        },
    )
    assert loss.loss.proxies.shape == (7, 16)
    assert isinstance(loss.expressed_loss, losses.ContrastiveLoss)
    assert loss.expressed_loss.neg_margin == 0.7


def test_memory_in_a_cross_batch_loss(create):
    loss, _ = create(
        "CrossBatchPrototypeLoss",
        {
            "loss": {
                "CrossBatchMemory": {
                    "memory_size": 64,
                    "loss": {"ContrastiveLoss": {"distance": {"LpDistance": {"p": 1}}}},
                    "miner": {"PairMarginMiner": {"distance": {"LpDistance": {"p": 1}}}},
                }
            }
        },
    )
    memory = loss.loss
    assert isinstance(memory, losses.CrossBatchMemory)
    assert (memory.memory_size, memory.embedding_size) == (64, 16)
    assert memory.loss.distance.p == 1
    assert isinstance(memory.miner, miners.PairMarginMiner)
    assert memory.miner.distance.p == 1


def test_several_losses_and_miners_in_a_cross_batch_loss(create):
    loss, _ = create(
        "CrossBatchPrototypeLoss",
        {
            "loss": {
                "MultipleLosses": {
                    "losses": {"ContrastiveLoss": {"neg_margin": 0.7}, "ProxyAnchorLoss": {}},
                    "miners": [{"MultiSimilarityMiner": {"epsilon": 0.2}}, None],
                    "weights": [1, 0.5],
                }
            }
        },
    )
    contrastive, proxy_anchor = loss.loss.losses
    assert contrastive.neg_margin == 0.7
    assert proxy_anchor.proxies.shape == (7, 16)
    assert loss.loss.weights == [1, 0.5]
    assert loss.loss.miners[0].epsilon == 0.2


def test_what_yaml_says_goes_before_what_the_run_tells(create):
    loss, _ = create("ProxyNCALoss", {"num_classes": 3, "embedding_size": 5})
    assert loss.proxies.shape == (3, 5)


def test_weight_regularizer_and_initialization(create):
    loss, _ = create(
        "NormalizedSoftmaxLoss",
        {
            "weight_regularizer": {"RegularFaceRegularizer": {"reducer": {"MeanReducer": {}}}},
            "weight_init_func": {"constant_": {"val": 0.25}},
        },
    )
    assert isinstance(loss.weight_regularizer, regularizers.RegularFaceRegularizer)
    assert isinstance(loss.weight_regularizer.reducer, reducers.MeanReducer)
    assert (loss.W == 0.25).all()


def test_a_miner_has_its_own_distance(getter):
    factory = getter.get("factory", class_name="MinerFactory", params={"getter": getter})
    specs = {"BatchEasyHardMiner": {"distance": {"CosineSimilarity": {}}}}
    for _ in range(2):
        assert isinstance(factory.create(specs).distance, distances.CosineSimilarity)
