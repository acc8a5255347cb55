"""A grid of runs: from one YAML file (docs/experiments.md) to named points, each a resumable run in its own folder."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipiqa import build, dist, registry
from ipiqa.config import yaml_file
from ipiqa.config.loading import Config, load_config, parse_override
from ipiqa.errors import ConfigError, IpiqaError, located
from ipiqa.registry import FilePath
from ipiqa.report import AblationRow, load_run, write_summary
from ipiqa.training.cross_validation import run
from ipiqa.training.run_folder import check_same_run, is_finished, of_seeds, weights_of

logger = logging.getLogger("ipiqa")

MAX_POINTS = 1000
CONTENT = "A grid has config, output_dir and rows or grid; there are some in ipiqa/projects, called ablation.yaml."
OUTPUT_DIR = "run.output_dir"
FIXED = (OUTPUT_DIR, "run.device")  # a folder comes from a name; all processes of a job are joined for one device


@dataclass(frozen=True, kw_only=True)
class GridFile:
    """The keys of a grid file."""

    config: FilePath
    output_dir: FilePath
    num_folds: int | None = None
    rows: list[dict] | None = None
    grid: dict[str, list] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The keys of a row."""

    name: str
    set: dict | None = None


@dataclass(frozen=True)
class Point:
    """One run of a grid: its name, what it changes as "key=value", and the whole config."""

    name: str
    changes: tuple[str, ...]
    config: Config

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.output_dir)

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.run_dir / "config.yaml").is_file()

    @property
    def state(self) -> str:
        """How far it is: finished, "3 of 5 folds" or not begun."""
        runs, folds = of_seeds(self.config), range(self.config.run.num_folds)
        done, count = sum(is_finished(Path(r.run.output_dir), n) for r in runs for n in folds), len(runs) * len(folds)
        return ("finished" if done == count else f"{done} of {count} folds") if self.is_begun else "not begun"

    def check_folder(self) -> None:
        """Raises ConfigError, with the differences, where the folder holds a run with other settings."""
        for one in of_seeds(self.config) if self.is_begun else ():
            if (Path(one.run.output_dir) / "config.yaml").is_file():
                check_same_run(one, weights_of(one))

    def check(self) -> None:
        """Finds missing or wrong weights, which else would stop the run only when its turn comes."""
        build.make_model(self.config, num_targets=1)

    def run(self, *, resume: bool) -> None:
        """Runs the folds that are left and writes their results."""
        run(self.config, resume=resume)


@dataclass(frozen=True)
class Grid:
    """The points of a grid file, in its order, and the folder their table is written to."""

    output_dir: Path
    points: tuple[Point, ...]


def load_grid(path: str | Path, *overrides: str) -> Grid:
    """Returns the points of a grid file, their configs loaded and checked.

    The overrides, "key=value", are for all points; run.output_dir takes the place of the file's output_dir. Points that
    share a name, a folder or all their settings are a ConfigError, as all else that cannot be loaded.
    """
    path = Path(registry.file_path(str(path), "--grid"))
    content = yaml_file.read_mapping(path, "--grid", CONTENT)
    with located(str(path)):
        file = GridFile(**registry.check_settings(GridFile, content, "grid"))
        return make_grid(dataclasses.replace(file, config=str(path.parent / file.config)), overrides)


def make_grid(file: GridFile, overrides: Sequence[str]) -> Grid:
    """Returns the points of the keys of a grid file; `config` is relative to the working directory here."""
    config_path = Path(file.config)
    if not config_path.is_file():
        raise ConfigError(f"grid.config: '{config_path}' is not a file. Give a config, relative to this file.")
    output_dir = dict(map(parse_override, overrides)).get(OUTPUT_DIR, file.output_dir)
    output_dir = Path(registry.file_path(str(output_dir), OUTPUT_DIR))
    common = [_override("run.num_folds", file.num_folds)] if file.num_folds is not None else []
    points: list[Point] = []
    for name, changes in _named_changes(file):
        with located(f"row {name!r}"):
            folder = _override(OUTPUT_DIR, str(output_dir / folder_name(name)))
            config = load_config(config_path, *common, *changes, *overrides, folder)
        points.append(Point(name, changes, config))
    check_distinct(points)
    return Grid(output_dir, tuple(points))


def _named_changes(file: GridFile) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields name and changes of every point: each combination of the grid for each row."""
    given, grid = file.rows or [{"name": ""}], file.grid or {}
    number = bool(file.rows or grid) * len(given) * math.prod(map(len, grid.values()))
    if not 1 <= number <= MAX_POINTS:
        raise ConfigError(f"rows and grid make {number} points. Give rows or lists of values, for 1 to {MAX_POINTS}.")
    rows = [Row(**registry.check_settings(Row, row, f"grid.rows.{n}")) for n, row in enumerate(given, 1)]
    last = [key.rpartition(".")[2] for key in grid]
    labels = [short if last.count(short) == 1 else key for key, short in zip(grid, last, strict=True)]
    for row in rows:
        changes = row.set or {}
        for key in (*changes, *grid):
            if key in FIXED:
                raise ConfigError(f"{key} cannot differ between points. Set it for all, at the end of the command.")
            if key in changes and key in grid:
                raise ConfigError(f"row {row.name!r}: {key} is set by the grid as well. Leave it to one of them.")
        own = tuple(_override(key, value) for key, value in changes.items())
        for values in itertools.product(*grid.values()):
            chosen = tuple(_override(key, value) for key, value in zip(grid, values, strict=True))
            texts = [f"{label}={text.partition('=')[2]}" for label, text in zip(labels, chosen, strict=True)]
            yield ", ".join(filter(None, (row.name, *texts))), own + chosen


def _override(key: str, value: Any) -> str:
    """Returns "key=value" that is read back as this value.

    >>> _override("task.loss", "mse"), _override("image_size", 64), _override("run.checkpoint", "64")
    ('task.loss=mse', 'image_size=64', 'run.checkpoint="64"')
    """
    plain = f"{key}={value}"
    is_read_back = isinstance(value, str) and parse_override(plain) == (key, value)
    return plain if is_read_back else f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def folder_name(name: str) -> str:
    """Returns a name as a file name.

    >>> folder_name("Without [QA], loss=mse")
    'without_qa_loss_mse'
    """
    folder = re.sub(r"[^a-z0-9.+-]+", "_", name.lower()).strip("._")
    if not re.search("[a-z0-9]", folder):
        raise ConfigError("no folder can be named so. Use a letter or a digit from a to z, 0 to 9.")
    return folder


def check_distinct(points: Sequence[Point]) -> None:
    """Raises where two points have the same name, folder or settings: one of them would stand for both."""
    seen: dict[tuple[str, str], Point] = {}
    for point in points:
        settings = point.config.to_dict()
        settings["run"].pop("output_dir")
        for what, value in (("name", point.name), ("folder", str(point.run_dir)), ("settings", json.dumps(settings))):
            other = seen.setdefault((what, value), point)
            if other is not point:
                raise ConfigError(f"{other.name!r} and {point.name!r} have the same {what}. Give each point its own.")


def check_folders(points: Sequence[Point]) -> None:
    """Raises ConfigError, with the differences, where the folder of a point holds a run with other settings."""
    for point in points:
        with located(f"row {point.name!r}"):
            point.check_folder()


def run_points(points: Sequence[Point]) -> dict[str, str]:
    """Runs each point that is not finished, or what is left of it, and writes its summary.

    Weights are checked before the first point is trained. Returns the errors of points that cannot be run, by name;
    they are logged, and the other points run. On several processes the first error is raised and ends the job, because
    a process that has failed alone could not join the others in the next point.
    """
    failures: dict[str, str] = {}
    if not points:
        return failures
    with dist.process_group(build.choose_device(points[0].config)):
        # Asked of rank 0 once: a process that looks later would find the folder that this very run has made.
        states = dist.from_main([(point.state == "finished", point.is_begun) for point in points])
        left = []
        for point, (is_done, is_begun) in zip(points, states, strict=True):
            if is_done:
                logger.info("row %r is finished, skipped", point.name)
                continue
            with _collecting(failures, point.name):
                point.check()
                left.append((point, is_begun))
        for number, (point, is_begun) in enumerate(left, 1):
            logger.info("row %r (%d of %d): %s", point.name, number, len(left), " ".join(point.changes) or "as it is")
            with _collecting(failures, point.name):
                point.run(resume=is_begun)
                if dist.is_main():
                    write_summary(point.run_dir)
    return failures


@contextlib.contextmanager
def _collecting(failures: dict[str, str], name: str) -> Iterator[None]:
    """Ends the block at the user's mistake, which is logged and put under the name of its point."""
    try:
        yield
    except IpiqaError as error:
        if dist.world_size() > 1:
            raise type(error)(f"row {name!r}: {error}") from None
        logger.error("row %r failed: %s", name, error)
        failures[name] = str(error)


def rows_of(points: Sequence[Point], failures: Mapping[str, str]) -> list[AblationRow]:
    """Returns the rows of the table: every point, with its results where it is finished, or its error in `failures`."""
    rows = []
    for point in points:
        result = None
        if point.state == "finished":
            whole, count = load_run(point.run_dir), point.config.run.num_folds
            folds = tuple(fold for fold in whole.folds if fold.number < count)  # an earlier grid may have had more
            result = dataclasses.replace(whole, folds=folds, num_folds=count)
        state = f"failed: {failures[point.name]}" if point.name in failures else point.state
        rows.append(AblationRow(point.name, point.changes, state, result))
    return rows
