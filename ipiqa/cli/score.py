"""`ipiqa score`: the scores of a picture, a folder, a table, shards or standard input."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipiqa.cli.arguments import add_command, add_model_arguments, path, whole_number
from ipiqa.errors import ConfigError

if TYPE_CHECKING:
    from ipiqa.engine.stop import StopSignals
    from ipiqa.scoring.job import Summary
    from ipiqa.scoring.rows import Rows
    from ipiqa.scoring.scorer import Scorer
    from ipiqa.scoring.writers import Cell, Columns

logger = logging.getLogger("ipiqa")

LOG_EVERY = 30.0  # seconds between lines of progress where there is no terminal
SHOWN = 5  # rows of a dry run
_TEXTS = (  # flag, what it takes, help
    ("--image-column", "NAME", "column of a table that names images"),
    ("--prompt-column", "NAME", "column of a table that holds prompts"),
    ("--image-root", "DIR", "folder of a table's images"),
    ("--prompt-member", "NAME", "prompt in shards: an ending such as txt, or json:KEY"),
    ("--out", "FILE", "file to write: .csv, .jsonl or .parquet; - for csv on standard output"),
)
_NUMBERS = (  # flag, lowest, highest, help
    ("--limit", 1, 2**62, "score the first N rows only"),
    ("--num-workers", 1, 256, "threads that decode; default one a core"),
)
_OF_RAY = (
    ("--concurrency", 1, 2**16, "processes; default as many as find room"),
    ("--num-cpus", 1, 2**16, "cores of a process; default 1, or with GPUs all of a machine shared out"),
    ("--num-gpus", 0, 2**10, "GPUs of a process; default 1 where there are any"),
)


def add_commands(commands: Any) -> None:
    """Adds `ipiqa score`."""
    more = (
        " A row that cannot be scored gets an error and the others their scores (status 3). Without --out, a table is "
        "printed. With a file as --out, a job that was stopped goes on when the same command is given again."
    )
    parser = add_command(commands, "score", score, "score images against prompts with a trained model", more)
    add_model_arguments(parser)
    images = "picture, folder, table, shards such as 'data/{000..099}.tar', or - for lines of standard input"
    parser.add_argument("images", type=path("images"), metavar="IMAGES", help=images)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for all images")
    source = "table or .txt of prompts; `sidecar`: cat.txt beside cat.png; `embedded`: what generators write in images"
    prompts.add_argument("--prompts", metavar="FILE", help=source)
    for flag, what, text in _TEXTS:
        parser.add_argument(flag, type=str if what == "NAME" else path(flag), metavar=what, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace that file, and what another job has begun")
    parser.add_argument("--dry-run", action="store_true", help="show what would be scored; write nothing")
    size = "images the model sees at once; default auto: 32 on a CPU, at most 128 on a GPU"
    auto = lambda text: None if text == "auto" else whole_number("--batch-size", 1, 2**16)(text)  # noqa: E731
    parser.add_argument("--batch-size", type=auto, metavar="N", help=size)
    group = parser.add_argument_group("several processes or machines")
    engine = "local: this process; ray: processes on a Ray cluster or this machine (extra [ray]); default local"
    group.add_argument("--engine", choices=("local", "ray"), default="local", help=engine)
    address = "cluster's host:port, or auto on one of its machines; default RAY_ADDRESS, or else this machine"
    group.add_argument("--address", metavar="HOST:PORT", help=address)
    for place, numbers in ((parser, _NUMBERS), (group, _OF_RAY)):
        for flag, low, high, text in numbers:
            place.add_argument(flag, type=whole_number(flag, low, high), metavar="N", help=text)


def score(arguments: argparse.Namespace) -> int:
    """Scores what the arguments name; returns 3 where some of it could not be scored."""
    from ipiqa.scoring.job import score_columns
    from ipiqa.scoring.loading import load
    from ipiqa.scoring.rows import Inputs
    from ipiqa.scoring.sources import open_rows
    from ipiqa.scoring.writers import Columns, check_output

    out = None if arguments.out in (None, "-") else Path(arguments.out)
    if out is not None:
        check_output(out, overwrite=arguments.overwrite or arguments.dry_run)
    of_ray = ["--address", *(flag for flag, *_ in _OF_RAY)]
    unread = [flag for flag in of_ray if getattr(arguments, flag[2:].replace("-", "_")) is not None]
    if arguments.engine != "ray" and unread:
        raise ConfigError(f"{unread[0]}: nothing reads it. Add --engine ray, or leave it out.")
    on_ray = arguments.engine == "ray" and not arguments.dry_run
    if on_ray and out is None:
        raise ConfigError("--engine ray: its scores go to a file. Give one as --out.")
    if on_ray and arguments.device != "auto":
        raise ConfigError("--device: with --engine ray it is --num-gpus that chooses, 0 for the CPU. Leave it out.")
    scorer = load(arguments.model, "cpu" if on_ray else arguments.device, arguments.amp, folds=arguments.folds)
    inputs = Inputs(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Inputs)})
    rows = open_rows(arguments.images, inputs, needs_prompt=scorer.needs_prompt)
    columns = Columns.of(rows.columns, score_columns(scorer))
    if renamed := [f"{a} -> {b}" for a, b in zip(rows.columns, columns.carried, strict=True) if a != b]:
        logger.info("columns of the input, renamed because the output has such: %s", ", ".join(renamed))
    if arguments.dry_run:
        return _show(rows, columns)
    return _print(scorer, rows, columns, arguments) if out is None else _write(scorer, rows, columns, out, arguments)


def _print(scorer: Scorer, rows: Rows, columns: Columns, arguments: argparse.Namespace) -> int:
    """Prints scores as they come; nothing is kept."""
    from ipiqa.datasets.checks import num_threads
    from ipiqa.scoring.job import Settings, Summary, auto_batch_size, score_parts
    from ipiqa.scoring.writers import write_aligned, write_csv

    batch_size = arguments.batch_size or auto_batch_size(scorer.device.type)
    settings = Settings(columns.scores, batch_size, arguments.num_workers or num_threads())
    summary, progress = Summary(), Progress(rows.num_rows)
    if sys.stdout.isatty():  # a bar would stand between the rows
        progress.bar.close()
    scored = score_parts(scorer, rows.parts(settings.part_size), settings, progress.add)
    (write_csv if arguments.out else write_aligned)(sys.stdout, columns, map(summary.add, scored))
    return _report(summary, progress)


def _write(scorer: Scorer, rows: Rows, columns: Columns, out: Path, arguments: argparse.Namespace) -> int:
    """Writes scores to a file, computed in this process or on Ray; when it is stopped, what is scored is kept."""
    from ipiqa.datasets.checks import num_threads
    from ipiqa.engine.stop import Interrupted, StopSignals
    from ipiqa.scoring.job import PartsFolder, Settings, auto_batch_size, score_parts, versions
    from ipiqa.scoring.loading import model_sha256
    from ipiqa.scoring.ray_engine import PartScorer, Pool, connected, score_on_ray

    folder, pool = PartsFolder.of(out), None
    batch_size = arguments.batch_size or folder.job().get("batch_size")
    try:
        with contextlib.ExitStack() as stack:
            if arguments.engine == "ray":
                stack.enter_context(connected(arguments.address or os.environ.get("RAY_ADDRESS")))
                pool = Pool.of(arguments.concurrency, arguments.num_cpus, arguments.num_gpus)
            device = pool.device if pool else scorer.device.type
            num_workers = arguments.num_workers or (pool.num_cpus if pool else num_threads())
            settings = Settings(columns.scores, batch_size or auto_batch_size(device), num_workers)
            job = {  # what decides scores besides the rows: a job that goes on must not differ in it
                "images": "-" if arguments.images == "-" else os.path.abspath(arguments.images),  # noqa: PTH100 (links)
                "model": model_sha256(arguments.model, arguments.folds), "device": device, "amp": arguments.amp,
                "batch_size": settings.batch_size, "columns": columns.names, "versions": versions(),
            }  # fmt: skip
            progress = Progress(rows.num_rows, stack.enter_context(StopSignals()))
            stack.enter_context(folder.claimed(job, overwrite=arguments.overwrite))
            pending = folder.pending(rows.parts(settings.part_size), progress.skip)
            if pool:
                model = arguments.model
                model = os.path.abspath(model) if os.path.exists(model) else model  # noqa: PTH100, PTH110 (a name)
                task = PartScorer(model, arguments.folds, settings, job, PartsFolder(folder.path.absolute()))
                score_on_ray(pending, task, pool, rows.num_rows, progress.add)
            else:
                for scored in score_parts(scorer, pending, settings, progress.add):
                    folder.write(scored)
            summary = folder.write_output(out, columns)
    except Interrupted as error:
        print(f"ipiqa: stopped {error}. Go on with the same command", file=sys.stderr)
        return 128 + error.signal_number
    status = _report(summary, progress)
    print(out)
    return status


def _show(rows: Rows, columns: Columns) -> int:
    """Prints what a job would do."""
    from ipiqa.scoring.writers import Columns, write_aligned

    first: list[list[Cell]] = []
    count = missing = unusable = 0
    for row in itertools.chain.from_iterable(part.rows() for part in rows.parts(1024)):
        count += 1
        unusable += bool(row.problem)
        missing += not row.problem and isinstance(row.source, Path) and not row.source.is_file()
        if count <= SHOWN:
            first.append([row.image, row.prompt, row.problem or None])
    write_aligned(sys.stdout, Columns((), ()), [first])
    more = "...\n" * (count > SHOWN)
    print(f"{more}{count} rows: {missing} images are missing, {unusable} rows are unusable otherwise")
    print(f"columns: {', '.join(columns.names)}")
    return 0


def _report(summary: Summary, progress: Progress) -> int:
    """Logs how a job ended and returns its exit status."""
    progress.bar.close()
    if summary.too_long:
        message = "prompts: %d of %d rows have longer ones than the model reads; their last words do not count"
        logger.warning(message, summary.too_long, summary.rows)
    for image, error in summary.failures:
        logger.warning("%s: %s", image, error)
    if more := summary.failed - len(summary.failures):
        logger.warning("... and %d more", more)
    failed = f", {summary.failed} could not be scored" * bool(summary.failed)
    if summary.rows > 1:
        logger.info("%d rows%s; %s", summary.rows, failed, progress.in_words())
    return 3 if summary.failed else 0


class Progress:
    """Shows how far a job is and how fast it goes, and stops it when a signal came."""

    def __init__(self, total: int | None, stop: StopSignals | None = None) -> None:
        from ipiqa.engine.log import progress_bar

        self.total, self.stop, self.skipped, self.scored = total, stop, 0, 0
        self.bar = progress_bar("scoring", total, unit="image")
        self.started = self.logged = time.monotonic()

    def skip(self, count: int) -> None:
        """Counts rows that an earlier job has scored, as `add`; they do not count for the speed."""
        self.skipped += count
        self.bar.n += count
        self.bar.initial = self.bar.last_print_n = self.bar.n
        self.add(0)

    def add(self, count: int) -> None:
        """Counts rows just scored; raises Interrupted where a signal came."""
        from ipiqa.engine.stop import Interrupted

        self.scored += count
        self.bar.update(count)
        if self.bar.disable and time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            logger.info("scored %d of %s rows, %s", self.skipped + self.scored, self.total or "?", self.in_words())
        if self.stop is not None and self.stop.signal_number is not None:
            raise Interrupted(f"after {self.skipped + self.scored} rows", self.stop.signal_number)

    def in_words(self) -> str:
        """Returns images per second, and the time left where that is known."""
        speed = self.scored / max(time.monotonic() - self.started, 1e-9)
        left = (self.total or 0) - self.scored - self.skipped
        more = f", {datetime.timedelta(seconds=round(left / speed))} left" if left > 0 and speed else ""
        return f"{speed:.1f} images/s{more}"
