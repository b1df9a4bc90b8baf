from .loss_factory import LossFactory
from .miner_factory import MinerFactory
from .model_factory import (
    ClassifierModelFactory,
    GeneratorModelFactory,
    ModelFactory,
)
from .optimizer_factory import OptimizerFactory
from .record_keeper_factory import RecordKeeperFactory
from .sampler_factory import SamplerFactory
from .tester_factory import TesterFactory

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
