"""`ipiqa demo-data`, `demo-pairs` and `demo-encoders`: what the demo needs before it trains."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_config_arguments, load, path, whole_number
from ipiqa.config.settings import MAX_SEED


def add_commands(commands: Any) -> None:
    """Adds the demo commands."""
    about = "Render the synthetic demo dataset, in the form of AGIQA-3k."
    data = commands.add_parser("demo-data", help="render the demo dataset", description=about)
    _add_rendering(data, "folder to write", seed=0)
    _add_number(data, "--num-prompts", 800, 1, 10_000, "prompts, four images each")
    data.set_defaults(run=run_data)
    about = "Render pictures and their prompts; no prompt of the demo dataset is among them."
    pairs = commands.add_parser("demo-pairs", help="render pairs for Image2Prompt on the demo", description=about)
    _add_rendering(pairs, "the demo's folder", seed=1)
    _add_number(pairs, "--num", 8192, 1, 100_000, "pairs")
    pairs.set_defaults(run=run_pairs)
    about = "Train tiny encoders on rendered picture-prompt pairs."
    encoders = commands.add_parser("demo-encoders", help="train the demo's tiny encoders", description=about)
    add_config_arguments(encoders)
    _add_number(encoders, "--num-pairs", 16384, 256, 100_000, "rendered pairs to train on")  # one batch at least
    _add_number(encoders, "--epochs", 4, 1, 1000, "times to go through them")
    encoders.set_defaults(run=run_encoders)


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, low: int, high: int, what: str) -> None:
    number = whole_number(flag, low, high)
    parser.add_argument(flag, type=number, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def _add_rendering(parser: argparse.ArgumentParser, out: str, *, seed: int) -> None:
    where = path("--out")
    parser.add_argument("--out", type=where, default="cache/demo", metavar="DIR", help=f"{out} (default: %(default)s)")
    _add_number(parser, "--seed", seed, 0, MAX_SEED, "of everything")
    _add_number(parser, "--image-size", 128, 16, 512, "side of the images, in pixels")


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
