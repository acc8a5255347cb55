"""The public Python interface, stable from 0.1 on; `import ipiqa` gives its names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ipiqa.config import load_config
from ipiqa.cross_validation import make_dataset
from ipiqa.fold import build_model as build_from_config
from ipiqa.models.checkpoints import load_model
from ipiqa.models.tokens import tokenize

__all__ = ["build_model", "tokenize"]


def build_model(cfg_path: str | Path, *overrides: str) -> nn.Module:
    """Returns the model of a config file, in evaluation mode on the CPU.

    `model(images, prompts)` takes images (B, 3, S, S), float and normalised, and B texts or their tokens, and returns
    scores (B, num_targets). With `run.checkpoint=FILE` among the overrides, the weights of that file are loaded.

    Args:
        cfg_path: a YAML file, such as ipiqa/projects/agiqa3k/ipiqa.yaml.
        overrides: settings of the form "key=value".

    Raises:
        ConfigError: a setting cannot be used.
        DataError: a weights file cannot be used.
    """
    config = load_config(cfg_path, *overrides)
    model = build_from_config(config, num_targets=make_dataset(config).num_targets)
    if config.run.checkpoint is not None:
        load_model(model, config.run.checkpoint, "run.checkpoint")
    return model.eval()
