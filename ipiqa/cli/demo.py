"""`ipiqa demo-data`, `demo-pairs` and `demo-encoders`: what the demo needs before it trains."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, add_number, load, path
from ipiqa.config.settings import MAX_SEED


def add_commands(commands: Any) -> None:
    """Adds the demo commands."""
    data = add_command(commands, "demo-data", run_data, "render the synthetic demo dataset, in the form of AGIQA-3k")
    add_number(data, "--num-prompts", 1, 10_000, "prompts, ten images each", default=300)
    more = " No prompt of the demo dataset is among them."
    pairs = add_command(commands, "demo-pairs", run_pairs, "render pairs for Image2Prompt on the demo", more)
    add_number(pairs, "--num", 1, 100_000, "pairs", default=8192)
    for seed, parser in enumerate((data, pairs)):
        folder = "the demo's folder (default: %(default)s)"
        parser.add_argument("--out", type=path("--out"), default="cache/demo", metavar="DIR", help=folder)
        add_number(parser, "--seed", 0, MAX_SEED, "of everything", default=seed)
        add_number(parser, "--image-size", 16, 512, "side of the images, in pixels", default=64)
    more = " They learn from rendered pairs of a picture and a prompt."
    encoders = add_command(commands, "demo-encoders", run_encoders, "train the demo's tiny encoders", more)
    add_config_arguments(encoders)
    add_number(encoders, "--num-pairs", 256, 100_000, "rendered pairs to train on", default=16384)  # one batch at least
    add_number(encoders, "--epochs", 1, 1000, "times to go through them", default=4)


def run_data(arguments: argparse.Namespace) -> int:
    """Writes the demo dataset and prints its noise ceilings."""
    from ipiqa.demo.database import write_demo_dataset

    folder, size = Path(arguments.out), arguments.image_size
    summary = write_demo_dataset(folder, seed=arguments.seed, num_prompts=arguments.num_prompts, image_size=size)
    print(f"{folder}: {summary}")
    return 0


def run_pairs(arguments: argparse.Namespace) -> int:
    """Writes pairs.csv and its pictures beside the demo dataset."""
    from ipiqa.datasets.readers import read_rows
    from ipiqa.demo.database import refuse_other_dataset, write_demo_pairs

    folder = Path(arguments.out)
    refuse_other_dataset(folder)
    prompts = read_rows(folder / "data.csv", "--out", [["prompt"]], "Make it with: ipiqa demo-data.")["prompt"]
    write_demo_pairs(folder, arguments.num, seed=arguments.seed, image_size=arguments.image_size, exclude=prompts)
    print(f"{folder / 'pairs.csv'}: {arguments.num} pairs")
    return 0


def run_encoders(arguments: argparse.Namespace) -> int:
    """Trains the encoders that a config's `weights` name, unless they are there."""
    from ipiqa.demo.encoders import WarmUp, warm_up

    print(warm_up(load(arguments), WarmUp(num_pairs=arguments.num_pairs, epochs=arguments.epochs)))
    return 0
