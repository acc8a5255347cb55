"""The command line. Modules that need torch are imported by the command that needs them."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence

import ipiqa
from ipiqa.cli import ablate, arguments, data, pretrain, show, train
from ipiqa.demo import commands as demo
from ipiqa.errors import IpiqaError

EXIT_STATUS = """exit status:
  0    done
  2    a mistake in the input, told in one line
  130  stopped by Ctrl-C   } the state is saved:
  143  stopped by SIGTERM  } go on with --resume
  141  nobody read the output to its end
  1    anything else, with a traceback: please report it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ipiqa <command>` and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="ipiqa",
        description="Train, evaluate and run models that score AI-generated images against their prompts.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ipiqa {ipiqa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for module in (train, pretrain, ablate, data, show, demo):
        module.add_commands(commands)
    parsed = arguments.parse(parser, argv)
    return guarded(lambda: parsed.run(parsed))


def guarded(command: Callable[[], int | None]) -> int:
    """Returns the exit status of a command; a user's mistake is told in one line."""
    try:
        status = command() or 0
        sys.stdout.flush()  # here a full disk or a reader that has gone can still be answered
        return status
    except IpiqaError as error:
        _tell(f"ipiqa: {error}")
        return 2
    except KeyboardInterrupt:
        _tell("ipiqa: stopped")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as after `| head`; without this Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell shows for SIGPIPE
    except OSError as error:
        path = error.filename2 or error.filename
        if path is None and error.errno != errno.ENOSPC:
            raise
        where = "standard output" if path is None else f"'{path}'"
        _tell(f"ipiqa: {where}: {error.strerror}. Check the path, its permissions and the space on its disk")
        return 2
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # its class lives behind the import of torch
            raise
        _tell(f"ipiqa: stopped {error}. The state is saved; go on with the same command and --resume")
        return 128 + int(error.signal_number)  # type: ignore[attr-defined]


def _tell(line: str) -> None:
    """Prints a line once, although every process of a torchrun job may have come upon the same mistake.

    The launcher ends the other processes as soon as one has failed. Rank 0 speaks at once, the others only if they are
    still there a little later, which means that rank 0 has not failed.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)
    print(line, file=sys.stderr, flush=True)
