"""From what a command ends with to an exit status: a user's mistake is one line, a mistake of ours a traceback."""

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from ipiqa.errors import IpiqaError

EXIT_STATUS = """exit status:
  0    done
  2    a mistake in the input, reported in one line
  3    done, and some rows of `ipiqa score` have an error
  130  stopped by Ctrl-C   } the state is saved: go on with
  143  stopped by SIGTERM  } --resume, or score with the same command
  141  nobody read the output to its end
  1    anything else, with a traceback: please report it
"""


def guarded(command: Callable[[], int | None]) -> int:
    """Returns the exit status of a command; a user's mistake is reported in one line."""
    for name in ("stdout", "stderr"):  # they take any text: closed ones lead nowhere, other encodings get escapes
        stream = getattr(sys, name)
        if stream is None:  # closed before the start, as by `>&-`; else the next file opened would stand in its place
            setattr(sys, name, _nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command() or 0
        sys.stdout.flush()  # here a full disk or a reader that has gone can still be reported
        return status
    except IpiqaError as error:
        return _reported(str(error), 2)
    except KeyboardInterrupt:
        return _reported("stopped", 130)
    except BrokenPipeError:
        # The reader of our output has gone, as after `| head`; without this Python would complain at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell shows for SIGPIPE
    except OSError as error:
        path = error.filename2 or error.filename
        if path is None and error.errno != errno.ENOSPC:
            raise
        where = "standard output" if path is None else f"'{path}'"
        return _reported(f"{where}: {error.strerror}. Check the path, its permissions and the space on its disk", 2)
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # its class lives behind the import of torch
            raise
        line = f"stopped {error}. The state is saved; go on with the same command and --resume"
        return _reported(line, 128 + int(error.signal_number))  # type: ignore[attr-defined]


def _reported(line: str, status: int) -> int:
    """Prints a line once, although every process of a torchrun job may have come upon the same mistake.

    The launcher ends the other processes as soon as one has failed. Rank 0 speaks at once, the others only if they are
    still there a little later, which means that rank 0 has not failed.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)
    try:
        print(f"ipiqa: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more; the exit status says enough
        sys.stderr = _nowhere()  # or Python would try again at exit
    return status


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123 (to the end)
