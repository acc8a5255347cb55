"""Training: tensors, loaders and callables in, checkpoints and a history out."""
