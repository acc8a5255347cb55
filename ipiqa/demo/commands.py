"""`ipiqa demo-data`, `demo-pairs` and `demo-encoders`: what the demo needs before it trains."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_config_arguments, load, path, whole_number
from ipiqa.config.settings import MAX_SEED


def add_commands(commands: Any) -> None:
    """Adds the demo commands."""
    data = commands.add_parser(
        "demo-data",
        help="render the demo dataset",
        description="Render the synthetic demo dataset, in the form of AGIQA-3k.",
    )
    _add_rendering(data, out="folder to write", seed=0)
    num_prompts = whole_number("--num-prompts", 1, 10_000)
    data.add_argument(
        "--num-prompts", type=num_prompts, default=300, metavar="N", help="ten images each (default: %(default)s)"
    )
    data.set_defaults(run=run_data)
    pairs = commands.add_parser(
        "demo-pairs",
        help="render pairs for Image2Prompt on the demo",
        description="Render pictures and their prompts; no prompt of the demo dataset is among them.",
    )
    _add_rendering(pairs, out="the demo's folder", seed=1)
    num_pairs = whole_number("--num", 1, 100_000)
    pairs.add_argument("--num", type=num_pairs, default=8192, metavar="N", help="pairs (default: %(default)s)")
    pairs.set_defaults(run=run_pairs)
    encoders = commands.add_parser(
        "demo-encoders",
        help="train the demo's tiny encoders",
        description="Train tiny encoders on rendered picture-prompt pairs.",
    )
    add_config_arguments(encoders)
    num_pairs = whole_number("--num-pairs", 256, 100_000)  # one batch at least
    encoders.add_argument("--num-pairs", type=num_pairs, metavar="N", help="rendered pairs to train on")
    epochs = whole_number("--epochs", 1, 1000)
    encoders.add_argument("--epochs", type=epochs, metavar="N", help="times to go through them")
    encoders.set_defaults(run=run_encoders)


def _add_rendering(parser: argparse.ArgumentParser, *, out: str, seed: int) -> None:
    where, size = path("--out"), whole_number("--image-size", 16, 512)
    parser.add_argument("--out", type=where, default="cache/demo", metavar="DIR", help=f"{out} (default: %(default)s)")
    seeds = whole_number("--seed", 0, MAX_SEED)
    parser.add_argument("--seed", type=seeds, default=seed, metavar="N", help="of everything (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=size, default=64, metavar="PX", help="side of the images (default: %(default)s)"
    )


def run_data(arguments: argparse.Namespace) -> int:
    """Writes the demo dataset and prints its noise ceilings."""
    from ipiqa.demo.database import write_demo_dataset

    folder = Path(arguments.out)
    summary = write_demo_dataset(
        folder, seed=arguments.seed, num_prompts=arguments.num_prompts, image_size=arguments.image_size
    )
    print(f"{folder}: {summary}")
    return 0


def run_pairs(arguments: argparse.Namespace) -> int:
    """Writes pairs.csv and its pictures beside the demo dataset."""
    from ipiqa.datasets.readers import read_rows
    from ipiqa.demo.database import refuse_other_dataset, write_demo_pairs

    folder = Path(arguments.out)
    refuse_other_dataset(folder)
    table = read_rows(folder / "data.csv", "--out", [["prompt"]], "Make it with: ipiqa demo-data.")
    prompts = sorted(set(table["prompt"]))
    write_demo_pairs(folder, arguments.num, seed=arguments.seed, image_size=arguments.image_size, exclude=prompts)
    print(f"{folder / 'pairs.csv'}: {arguments.num} pairs")
    return 0


def run_encoders(arguments: argparse.Namespace) -> int:
    """Trains the encoders that a config's `weights` name, unless they are there."""
    from ipiqa.demo.encoders import WarmUp, warm_up
    from ipiqa.engine import log

    log.set_up()
    given = {"num_pairs": arguments.num_pairs, "epochs": arguments.epochs}
    settings = WarmUp(**{name: value for name, value in given.items() if value is not None})
    print(warm_up(load(arguments), settings))
    return 0
