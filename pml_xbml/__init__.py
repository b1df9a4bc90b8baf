"""Cross-batch metric learning (XML) for pytorch-metric-learning."""
