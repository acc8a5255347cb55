"""`ipiqa demo-data` and `ipiqa demo-encoders`: what `make demo` does before it trains."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.train import add_config_arguments, load


def add_commands(commands: Any) -> None:
    """Adds the demo commands."""
    data = commands.add_parser(
        "demo-data",
        help="render the demo dataset",
        description="Render the synthetic demo dataset, in the form of AGIQA-3k.",
    )
    data.add_argument("--out", default="cache/demo", metavar="DIR", help="folder to write (default: %(default)s)")
    data.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything (default: %(default)s)")
    data.add_argument(
        "--num-prompts", type=int, default=300, metavar="N", help="prompts, ten images each (default: %(default)s)"
    )
    data.add_argument(
        "--image-size", type=int, default=64, metavar="PX", help="side of the images (default: %(default)s)"
    )
    data.set_defaults(run=run_data)
    encoders = commands.add_parser(
        "demo-encoders",
        help="train the demo's tiny encoders",
        description="Train tiny encoders on rendered picture-prompt pairs.",
    )
    add_config_arguments(encoders)
    encoders.add_argument("--num-pairs", type=int, metavar="N", help="rendered pairs to train on")
    encoders.add_argument("--epochs", type=int, metavar="N", help="times to go through them")
    encoders.set_defaults(run=run_encoders)


def run_data(arguments: argparse.Namespace) -> int:
    """Writes the demo dataset and prints its noise ceilings."""
    from ipiqa.datasets.demo import write_demo_dataset

    folder = Path(arguments.out)
    summary = write_demo_dataset(
        folder, seed=arguments.seed, num_prompts=arguments.num_prompts, image_size=arguments.image_size
    )
    print(f"{folder}: {summary}")
    return 0


def run_encoders(arguments: argparse.Namespace) -> int:
    """Trains the encoders that a config's `weights` name, unless they are there."""
    from ipiqa.engine import log
    from ipiqa.warm_up import WarmUp, warm_up

    log.set_up()
    given = {"num_pairs": arguments.num_pairs, "epochs": arguments.epochs}
    settings = WarmUp(**{name: value for name, value in given.items() if value is not None})
    print(warm_up(load(arguments), settings))
    return 0
