"""`ipiqa pretrain` and pretrain_image2prompt.py: the image tower learns prompts."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, load, start
from ipiqa.cli.train import add_seed_and_resume


def add_commands(commands: Any) -> None:
    """Adds `ipiqa pretrain`."""
    _add_arguments(add_command(commands, "pretrain", run_pretrain, "teach an image tower the prompts of pictures"))


def script(argv: Sequence[str] | None = None) -> int:
    """Runs pretrain_image2prompt.py and returns its exit status."""
    parser = argparse.ArgumentParser(description="Image2Prompt pre-training of an image tower.")
    parser.set_defaults(run=run_pretrain)
    _add_arguments(parser)
    return start(parser, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_seed_and_resume(parser, "seed (run.seed)")


def run_pretrain(arguments: argparse.Namespace) -> int:
    """Pre-trains, and prints what was reached and how to use it."""
    config = load(arguments)
    from ipiqa import dist
    from ipiqa.training.pretraining import ENCODER, SUMMARY, describe_metrics, pretrain

    run_dir = pretrain(config, resume=arguments.resume)
    if dist.is_main():
        summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
        print(run_dir)
        for name in ("best", "last"):
            print(f"  {name} epoch {summary[name]['epoch']}: {describe_metrics(summary[name])}")
        print(f"\nUse it: model.image_encoder.weights={run_dir / ENCODER}")
    return 0
