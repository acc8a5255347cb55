"""A grid of runs: from one YAML file to named points, each a resumable run in a folder of its own.

The file (paths of `config` are relative to it, `output_dir` to where the command is started):

    config: ipiqa.yaml              # what every point is a change of
    output_dir: output/demo/ablation
    num_folds: 5                    # optional: run.num_folds of every point
    rows:                           # named points; all others are compared with the first
      - name: whole
      - name: without prompt
        set: {model.name: image_only}
    grid:                           # every combination of these, for each row
      task.loss: [mse, huber]

At least one of `rows` and `grid` is there. The points of a grid bear their values behind the name of the row: "whole,
loss=mse". A point runs in `<output_dir>/<its name, as a file name>`.
"""

from __future__ import annotations

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
from ipiqa.errors import ConfigError, DataError, IpiqaError, did_you_mean, shorten
from ipiqa.report import AblationRow, load_run, write_summary
from ipiqa.training.cross_validation import run
from ipiqa.training.run_folder import check_same_run, is_finished, weights_of

logger = logging.getLogger("ipiqa")

MAX_POINTS = 1000
KEYS = ("config", "output_dir", "num_folds", "rows", "grid")
OUTPUT_DIR = "run.output_dir"
# What a point may not set: the folder comes from its name, and all processes of a job are joined for one device.
FIXED = {
    OUTPUT_DIR: "Each point has its own under output_dir.",
    "run.device": "Give it at the end of the command, for all points.",
}


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
    def num_finished(self) -> int:
        """How many of its folds have their scores."""
        return sum(is_finished(self.run_dir, fold) for fold in range(self.config.run.num_folds))

    @property
    def is_done(self) -> bool:
        return self.is_begun and self.num_finished == self.config.run.num_folds

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.is_done:
            return "finished"
        return f"{self.num_finished} of {self.config.run.num_folds} folds" if self.is_begun else "not begun"


@dataclass(frozen=True)
class Grid:
    """The points of a grid file, in its order, and the folder their table is written to."""

    output_dir: Path
    points: tuple[Point, ...]


# ----------------------------------------------------------------------------------------------------- reading the file


def load_grid(path: str | Path, *overrides: str) -> Grid:
    """Returns the points of a grid file, their configs loaded and checked.

    Args:
        path: YAML file in the form shown above.
        overrides: "key=value" for all points; run.output_dir takes the place of the file's output_dir.

    Raises:
        ConfigError: a file that cannot be read, a wrong key or type, points that share a name, a folder or all their
            settings, or a point whose config does not load.
    """
    path = Path(registry.file_path(str(path), "--grid"))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"--grid: '{path}' {what}. Grids are in ipiqa/projects/*/ablation.yaml.")
    content = yaml_file.read_mapping(path, f"A grid has the keys {', '.join(KEYS)}.")
    _check_keys(content, KEYS, str(path))
    config_path = path.parent / registry.file_path(_text(content, "config", str(path)), f"{path}: config")
    if not config_path.is_file():
        raise ConfigError(f"{path}: config: '{config_path}' does not exist. Give a config, relative to this file.")
    output_dir = Path(registry.file_path(_text(content, "output_dir", str(path)), f"{path}: output_dir"))
    common = [_override("run.num_folds", content["num_folds"])] if content.get("num_folds") is not None else []
    for_all = []
    for override in overrides:
        key, value = parse_override(override)
        if key == OUTPUT_DIR:
            output_dir = Path(registry.file_path(str(value), OUTPUT_DIR))
        else:
            for_all.append(override)
    points: list[Point] = []
    for name, changes in _named_changes(content, str(path)):
        changes = (*common, *changes)
        folder = _override(OUTPUT_DIR, str(output_dir / _folder_name(name, path)))
        with _naming_row(name):
            config = load_config(config_path, *changes, *for_all, folder)
        points.append(Point(name, changes[len(common) :], config))
    _check_distinct(points, str(path))
    return Grid(output_dir, tuple(points))


def _check_keys(section: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in section:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{where}: {key}: no such key.{near} There are: {', '.join(known)}.")


def _text(section: Mapping[str, Any], key: str, where: str) -> str:
    value = section.get(key)
    if not isinstance(value, str) or not value.strip():
        problem = "missing" if key not in section else f"{shorten(value)} is not text"
        raise ConfigError(f"{where}: {key}: {problem}. Write {key}: and a text, in quotes where it is a number.")
    return value


def _named_changes(content: Mapping[str, Any], where: str) -> list[tuple[str, tuple[str, ...]]]:
    """Returns name and changes of every point: each combination of the grid for each row."""
    if content.get("rows") is None and content.get("grid") is None:
        raise ConfigError(f"{where}: neither rows nor grid is there. Give named rows, or lists of values under grid.")
    rows = _rows(content["rows"], where) if content.get("rows") is not None else [("", {})]
    grid = _lists(content["grid"], where) if content.get("grid") is not None else {}
    labels = {key: _short(key, grid) for key in grid}
    number = len(rows) * math.prod(map(len, grid.values()))
    if number > MAX_POINTS:
        raise ConfigError(f"{where}: {number} points. A grid has at most {MAX_POINTS}; give fewer values.")
    out = []
    for name, changes in rows:
        both = [key for key in changes if key in grid]
        if both:
            raise ConfigError(f"{where}: row {name!r}: {both[0]} is set by the grid as well. Leave it to one of them.")
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            parts = [name] * bool(name) + [
                f"{labels[k]}={_override(k, v).partition('=')[2]}" for k, v in chosen.items()
            ]
            overrides = tuple(_override(key, value) for key, value in {**changes, **chosen}.items())
            out.append((", ".join(parts), overrides))
    return out


def _rows(rows: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{where}: rows: {shorten(rows)} is not a list of rows. Write '- name: whole' and so on.")
    out = []
    for number, row in enumerate(rows, 1):
        here = f"{where}: rows, number {number}"
        if not isinstance(row, dict):
            raise ConfigError(f"{here}: {shorten(row)} is not a mapping. Write '- name: whole', and set: under it.")
        _check_keys(row, ("name", "set"), here)
        name = _text(row, "name", here)
        out.append((name, _changes(row.get("set", {}), f"{where}: row {name!r}: set")))
    return out


def _changes(changes: Any, where: str) -> dict[str, Any]:
    """Returns a mapping of settings that may differ between points."""
    if not isinstance(changes, dict):
        raise ConfigError(f"{where}: {shorten(changes)} is not a mapping. Write dotted keys and their values under it.")
    for key in changes:
        if key in FIXED:
            raise ConfigError(f"{where}: {key} cannot differ between points. {FIXED[key]}")
    return changes


def _lists(grid: Any, where: str) -> dict[str, list[Any]]:
    for key, values in _changes(grid, f"{where}: grid").items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: grid: {key}: {shorten(values)} is not a list of values. Write [value, value].")
    return dict(grid)


def _short(key: str, grid: Mapping[str, Any]) -> str:
    """Returns the last part of a key, or the whole key where another one ends in the same part.

    >>> grid = {"task.loss": [], "model.head.name": [], "model.fusion.name": []}
    >>> [_short(key, grid) for key in grid]
    ['loss', 'model.head.name', 'model.fusion.name']
    """
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in grid].count(last) == 1 else key


def _override(key: str, value: Any) -> str:
    """Returns "key=value" that is read back as this value.

    >>> _override("task.loss", "mse"), _override("image_size", 64), _override("run.checkpoint", "64")
    ('task.loss=mse', 'image_size=64', 'run.checkpoint="64"')
    """
    plain = f"{key}={value}"
    if isinstance(value, str) and parse_override(plain) == (key, value):
        return plain
    return f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def _folder_name(name: str, path: Path) -> str:
    """Returns a name as a file name.

    >>> _folder_name("Without [QA], loss=mse", Path("grid.yaml"))
    'without_qa_loss_mse'
    """
    folder = re.sub(r"[^a-z0-9.+-]+", "_", name.lower()).strip("._")
    if not re.search("[a-z0-9]", folder):
        raise ConfigError(
            f"{path}: row {name!r}: no folder can be named so. Use a letter or a digit from a to z, 0 to 9."
        )
    return folder


def _check_distinct(points: Sequence[Point], where: str) -> None:
    """Raises where two points have the same name, folder or settings: one of them would stand for both."""
    seen: dict[tuple[str, str], Point] = {}
    for point in points:
        settings = point.config.to_dict()
        settings["run"].pop("output_dir")
        for what, value in (("name", point.name), ("folder", str(point.run_dir)), ("settings", json.dumps(settings))):
            other = seen.setdefault((what, value), point)
            if other is not point:
                raise ConfigError(
                    f"{where}: {other.name!r} and {point.name!r} have the same {what}. Give each point its own."
                )


def check_folders(points: Sequence[Point]) -> None:
    """Checks that the folder of each point, finished or not, holds no run with other settings.

    Raises:
        ConfigError: one does; it names the differences.
    """
    for point in points:
        if point.is_begun:
            with _naming_row(point.name):
                check_same_run(point.config, weights_of(point.config))


@contextlib.contextmanager
def _naming_row(name: str) -> Iterator[None]:
    """Puts the name of a point before the message of an error raised within the block."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"row {name!r}: {error}") from None


# ------------------------------------------------------------------------------------------------------- running points


def run_points(points: Sequence[Point]) -> dict[str, str]:
    """Runs each point that is not finished, or what is left of it, and writes its summary.

    A point that cannot be run is logged and left out, and the others are run. What all points need of weights is
    checked before the first is trained. On several processes the first error ends the job, because a process that has
    failed alone could not join the others in the next point.

    Returns:
        The error of each point that failed, by its name; empty when all went well.

    Raises:
        ConfigError, DataError: on several processes, a point that cannot be run; the line begins with its name.
        Interrupted: stopped by a signal; the state is saved.
    """
    failures: dict[str, str] = {}
    if not points:
        return failures
    with dist.process_group(build.choose_device(points[0].config)):
        # Asked of rank 0 once: a process that looks later would find the folder that this very run has made.
        done = dist.from_main([point.is_done for point in points])
        begun = dist.from_main([point.is_begun for point in points])
        left = []
        for point, is_done, is_begun in zip(points, done, begun, strict=True):
            if is_done:
                logger.info("row %r is finished, skipped", point.name)
                continue
            with _collecting(failures, point.name):
                build.make_model(point.config, num_targets=1)  # finds missing or wrong weights
                left.append((point, is_begun))
        for number, (point, is_begun) in enumerate(left, 1):
            logger.info("row %r (%d of %d): %s", point.name, number, len(left), " ".join(point.changes) or "as it is")
            with _collecting(failures, point.name):
                run(point.config, resume=is_begun)
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


def shard_of(points: Sequence[Point], number: int, count: int) -> list[Point]:
    """Returns every count-th point, from the number-th on, counted from 1.

    >>> [shard_of("abcde", number, 2) for number in (1, 2)]
    [['a', 'c', 'e'], ['b', 'd']]
    """
    return list(points[number - 1 :: count])


def rows_of(grid: Grid, failures: Mapping[str, str] | None = None) -> list[AblationRow]:
    """Returns the rows of the table: every point, with its results where it is finished.

    Args:
        grid: all points.
        failures: what `run_points` returned.

    Raises:
        DataError: a finished point whose files cannot be read.
    """
    rows = []
    for point in grid.points:
        result = None
        if point.is_done:
            whole, count = load_run(point.run_dir), point.config.run.num_folds
            folds = tuple(fold for fold in whole.folds if fold.number < count)  # an earlier grid may have had more
            result = dataclasses.replace(whole, folds=folds, num_folds=count)
        error = (failures or {}).get(point.name)
        state = point.state if error is None else f"failed: {error}"
        rows.append(AblationRow(point.name, point.changes, state, result))
    return rows
