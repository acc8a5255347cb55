"""`ipiqa pretrain` and pretrain_image2prompt.py: the image tower learns prompts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ipiqa.cli.arguments import add_config_arguments, load, parse, whole_number
from ipiqa.cli.guard import guarded
from ipiqa.config.settings import MAX_SEED


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a pre-training run."""
    add_config_arguments(parser)
    parser.add_argument("--seed", type=whole_number("--seed", 0, MAX_SEED), metavar="N", help="seed (run.seed)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def add_commands(commands: Any) -> None:
    """Adds `ipiqa pretrain`."""
    parser = commands.add_parser(
        "pretrain",
        help="teach an image tower the prompts of pictures",
        description="Image2Prompt pre-training of an image tower.",
    )
    add_pretrain_arguments(parser)
    parser.set_defaults(run=run_pretrain)


def run_pretrain(arguments: argparse.Namespace) -> int:
    """Pre-trains, and prints what was reached and how to use it."""
    from ipiqa.engine import log

    log.set_up()
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


def script(argv: Sequence[str] | None = None) -> int:
    """Runs pretrain_image2prompt.py and returns its exit status."""
    parser = argparse.ArgumentParser(description="Image2Prompt pre-training of an image tower.")
    add_pretrain_arguments(parser)
    return guarded(lambda: run_pretrain(parse(parser, argv)))
