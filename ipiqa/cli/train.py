"""`ipiqa train`, `ipiqa pretrain` and the scripts: k folds of one config, and an image tower that learns prompts."""

import argparse
import json
from collections.abc import Sequence

from ipiqa.cli.arguments import add_arguments, commands, load, start
from ipiqa.errors import ConfigError

SCRIPTS = {"agiqa_1k": "train_agiqa1k.py", "agiqa_3k": "train_agiqa3k.py"}  # by the dataset they are for


def script(dataset: str | None, argv: Sequence[str] | None = None) -> int:
    """Runs the train script of a dataset, or pretrain_image2prompt.py for None, and returns its exit status."""
    about = f"Train and evaluate k folds on {dataset}." if dataset else "Image2Prompt pre-training of an image tower."
    parser = argparse.ArgumentParser(description=about)
    parser.set_defaults(run=train if dataset else pretrain, dataset=dataset)
    add_arguments(parser, commands()["train" if dataset else "pretrain"]["arguments"])
    return start(parser, argv)


def train(arguments: argparse.Namespace) -> int:
    """Trains the folds asked for, prints their table and the path of the report."""
    config, dataset = load(arguments), getattr(arguments, "dataset", None)
    name = config.dataset["name"]
    if dataset not in (None, name):
        other = SCRIPTS.get(name, "ipiqa train")
        raise ConfigError(f"{arguments.cfg_path}: dataset.name is {name!r}. Start it with {other}.")
    from ipiqa import dist
    from ipiqa.report import breakdown_text, console_table, write_summary
    from ipiqa.training.cross_validation import run

    run_dir = run(config, folds=arguments.folds, resume=arguments.resume)
    if dist.is_main():
        summary = write_summary(run_dir)
        report = f"Report: {run_dir / 'report.html'}"
        print(*filter(None, (console_table(summary), breakdown_text(summary), report)), sep="\n\n")
    return 0


def pretrain(arguments: argparse.Namespace) -> int:
    """Pre-trains, and prints what was reached and how to use it."""
    config = load(arguments)
    from ipiqa import dist
    from ipiqa.training import pretraining

    run_dir = pretraining.pretrain(config, resume=arguments.resume)
    if dist.is_main():
        summary = json.loads((run_dir / pretraining.SUMMARY).read_text(encoding="utf-8"))
        print(run_dir)
        for name in ("best", "last"):
            print(f"  {name} epoch {summary[name]['epoch']}: {pretraining.describe_metrics(summary[name])}")
        print(f"\nUse it: model.image_encoder.weights={run_dir / pretraining.ENCODER}")
    return 0
