"""Runs that leave a folder: k folds of a config, pre-training."""
