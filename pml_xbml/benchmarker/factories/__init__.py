from pml_xbml.benchmarker.factories.loss_factory import LossFactory
from pml_xbml.benchmarker.factories.miner_factory import MinerFactory
from pml_xbml.benchmarker.factories.model_factory import (
    ClassifierModelFactory,
    GeneratorModelFactory,
    ModelFactory,
)
from pml_xbml.benchmarker.factories.optimizer_factory import OptimizerFactory
from pml_xbml.benchmarker.factories.record_keeper_factory import RecordKeeperFactory
from pml_xbml.benchmarker.factories.sampler_factory import SamplerFactory
from pml_xbml.benchmarker.factories.tester_factory import TesterFactory

__all__ = [
    "ClassifierModelFactory",
    "GeneratorModelFactory",
    "LossFactory",
    "MinerFactory",
    "ModelFactory",
    "OptimizerFactory",
    "RecordKeeperFactory",
    "SamplerFactory",
    "TesterFactory",
]
