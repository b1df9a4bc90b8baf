from .cross_batch_prototype_loss import CrossBatchPrototypeLoss

__all__ = ["CrossBatchPrototypeLoss"]
