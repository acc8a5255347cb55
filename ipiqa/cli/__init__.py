"""The command line. Modules that need torch are imported by the command that needs them."""

import argparse
from collections.abc import Sequence

import ipiqa
from ipiqa.cli.arguments import add_all, commands, start
from ipiqa.cli.guard import EXIT_STATUS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ipiqa <command>` and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="ipiqa",
        description="Train, evaluate and run models that score AI-generated images against their prompts.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ipiqa {ipiqa.__version__}")
    add_all(parser, commands())
    return start(parser, argv)
