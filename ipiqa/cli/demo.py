"""`ipiqa demo-data`, `demo-pairs` and `demo-encoders`: what the demo needs before it trains."""

import argparse
from pathlib import Path

from ipiqa.cli.arguments import load


def run_data(arguments: argparse.Namespace) -> int:
    """Writes the demo dataset and prints its noise ceilings."""
    from ipiqa.demo.database import write_demo_dataset

    folder, size = Path(arguments.out), arguments.image_size
    summary = write_demo_dataset(folder, seed=arguments.seed, num_prompts=arguments.num_prompts, image_size=size)
    print(f"{folder}: {summary}")
    return 0


def run_pairs(arguments: argparse.Namespace) -> int:
    """Writes pairs.csv and its pictures beside the demo dataset."""
    from ipiqa.demo.database import refuse_other_dataset, write_demo_pairs

    folder = Path(arguments.out)
    refuse_other_dataset(folder)
    write_demo_pairs(folder, arguments.num, seed=arguments.seed, image_size=arguments.image_size)
    print(f"{folder / 'pairs.csv'}: {arguments.num} pairs")
    return 0


def run_encoders(arguments: argparse.Namespace) -> int:
    """Trains the encoders that a config's `weights` name, unless they are there."""
    from ipiqa.demo.encoders import WarmUp, warm_up

    print(warm_up(load(arguments), WarmUp(num_pairs=arguments.num_pairs, epochs=arguments.epochs)))
    return 0
