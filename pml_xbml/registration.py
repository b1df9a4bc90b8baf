def register() -> None:
    """Puts the loss and the sampler into ``pytorch_metric_learning.losses`` and ``.samplers``.

    Registries that read those modules, powerful-benchmarker's or one's own, then find them by name. Calling
    it twice is calling it once.

    Raises:
        ValueError: if a different class already stands under one of the names; then nothing is changed.

    Example:
        >>> import pml_xbml
        >>> pml_xbml.register()
        >>> from pytorch_metric_learning import losses
        >>> losses.CrossBatchPrototypeLoss()
        CrossBatchPrototypeLoss(
          (loss): ContrastiveLoss(...
    """
    # PML's samplers import its testers, and those faiss: not before somebody registers.
    from pytorch_metric_learning import losses as pml_losses
    from pytorch_metric_learning import samplers as pml_samplers

    from .losses import CrossBatchPrototypeLoss
    from .samplers import DisjointClassPairSampler

    additions = ((pml_losses, CrossBatchPrototypeLoss), (pml_samplers, DisjointClassPairSampler))
    for module, addition in additions:
        present = getattr(module, addition.__name__, addition)
        if present is not addition:
            raise ValueError(
                f"{module.__name__}.{addition.__name__} is already {present!r}, so pml_xbml does not replace "
                "it: remove that one before pml_xbml.register()"
            )
    for module, addition in additions:
        setattr(module, addition.__name__, addition)
