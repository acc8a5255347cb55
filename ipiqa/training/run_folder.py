"""The folder of a run: who may write where, and what must be the same for a run to be continued."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ipiqa import dist
from ipiqa.build import Data
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets.splits import Split
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import content_sha256, locked, write_json, write_text

logger = logging.getLogger("ipiqa")

IDENTITY = "identity.json"  # what the run reads, by hash: written once, compared by every later job

# Settings that a continued run may change: they change how and where it runs, not what comes out. Paths are among them
# because the content of what they name is compared instead.
HARMLESS = frozenset(
    {
        "run.output_dir",
        "run.num_workers",
        "run.log_every",
        "run.save_every",
        "run.device",
        "run.num_folds",
        "dataset.annotations",
        "dataset.images",
        "dataset.shards",
        "dataset.val_shards",
        "dataset.image_cache",
        "dataset.cache_dir",
        "dataset.cache_limit_gb",
    }
)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name.

    >>> flatten({"run": {"seed": 1}, "image_size": 64})
    {'run.seed': 1, 'image_size': 64}
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _names_weights(setting: str) -> bool:
    """Returns whether a setting names a file of weights, whose content counts and not its path."""
    return setting == "run.checkpoint" or (setting.startswith("model.") and setting.endswith(".weights"))


def identity_of(config: Config) -> dict[str, Any]:
    """Returns the settings that decide the numbers of a run, by dotted name; for files see `content_of`."""
    settings = flatten(config.to_dict())
    settings = {k: v for k, v in settings.items() if k not in HARMLESS and not _names_weights(k)}
    if config.split.kind == "kfold":
        settings["run.num_folds"] = config.run.num_folds
    return settings


def weights_of(config: Config, checkpoints: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns the sha256 of every file of weights by the setting that names it; a value that names none as it is.

    Args:
        config: names the files.
        checkpoints: files by name in place of `run.checkpoint`, where that is a folder.
    """
    named = {name: value for name, value in flatten(config.to_dict()).items() if _names_weights(name)}
    if checkpoints:
        del named["run.checkpoint"]
        named |= checkpoints
    files = {value: Path(value) for value in named.values() if value is not None and Path(value).is_file()}
    hashes = dict(zip(files, content_sha256(list(files.values())), strict=True))
    return {name: hashes.get(value, value) for name, value in named.items()}


def content_of(device: torch.device, data: Data | None, splits: Iterable[Split]) -> dict[str, Any]:
    """Returns what decides the numbers of a run apart from its settings and weights, by name.

    Args:
        device: where it runs; on the CPU the number of threads decides the order of sums.
        data: table and images, where there are.
        splits: the splits that this job trains on.
    """
    content: dict[str, Any] = {"the number of processes": dist.world_size()}
    if device.type == "cpu":
        content["the number of CPU threads (OMP_NUM_THREADS)"] = torch.get_num_threads()
    if data is not None:
        content["the annotation table (sha256)"] = data.table.sha256
        content["the image files (sha256)"] = data.images_sha256
    return content | {f"sha256 of the split of fold {split.fold}": split.sha256 for split in splits}


def check_same_command(config: Config, **arguments: Any) -> None:
    """Raises ConfigError where the processes of a job have other settings or arguments; paths of data may differ."""
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in HARMLESS or not k.startswith("dataset.")}
    dist.check_equal(settings | {f"--{name}": value for name, value in arguments.items()})


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises when a run would be continued under other conditions than it began with.

    Raises:
        ConfigError: naming each difference.
    """
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    if names:
        changes = "; ".join(f"{n} was {_short(before.get(n))}, is {_short(now.get(n))}" for n in names)
        raise ConfigError(
            f"{where}: cannot be continued, this would change its results: {changes}. "
            "Set these back, or choose another run.output_dir."
        )


def _short(value: Any) -> str:
    """Returns a value as Python writes it, on one line of bounded length."""
    return " ".join(repr(value).split())[:200]


def check_same_run(config: Config, content: Mapping[str, Any]) -> dict[str, Any]:
    """Compares settings and content with those that the run in `run.output_dir` was begun with; returns its content.

    Content that the run has not recorded, such as the splits of folds to come, is not compared.

    Raises:
        ConfigError: naming each difference.
        DataError: the record of the run cannot be read.
    """
    run_dir = Path(config.run.output_dir)
    stored = load_config(run_dir / "config.yaml")
    before, now = identity_of(stored), identity_of(config)
    recorded = _recorded_content(run_dir)
    if recorded is None:
        logger.warning("%s: without %s, as older versions left it; its last.pt says what to compare", run_dir, IDENTITY)
        recorded = {name: value for name, value in flatten(stored.to_dict()).items() if _names_weights(name)}
        content = {**content, **{name: value for name, value in flatten(config.to_dict()).items() if name in recorded}}
    common = [name for name in content if name in recorded]
    check_identity(before | {n: recorded[n] for n in common}, now | {n: content[n] for n in common}, run_dir)
    return recorded


def _recorded_content(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / IDENTITY
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["content"]
        if isinstance(content, dict) and all(isinstance(value, (str, int, type(None))) for value in content.values()):
            return content
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DataError(f"{path}: not the identity of a run. Restore it, or choose another run.output_dir.")


def fold_dir(run_dir: Path, fold: int) -> Path:
    """Returns the folder of one fold, counted from 0."""
    return run_dir / f"fold_{fold:02d}"


def is_finished(run_dir: Path, fold: int) -> bool:
    """Returns whether a fold has its scores."""
    return (fold_dir(run_dir, fold) / "scores.json").is_file()


def is_restarted(run_dir: Path) -> bool:
    """Returns whether torchrun has started this job again and its first life got as far as to begin the run."""
    return dist.is_restart() and (run_dir / "config.yaml").is_file()


@contextlib.contextmanager
def claimed(config: Config, content: Mapping[str, Any], folds: list[int], *, resume: bool) -> Iterator[None]:
    """Holds the run folder, or of a run with folds those asked for, while the block runs.

    The first job makes the folder and records settings and content there; every later one is compared with them.
    Several jobs may share a run folder, each with folds of its own. A run without folds has the folder for itself.

    Args:
        config: what is to be run.
        content: what decides its numbers apart from its settings: see `content_of` and `weights_of`.
        folds: numbers of the folds that this job trains.
        resume: whether to continue what is there.

    Raises:
        ConfigError: a fold is there already and `resume` is off, another job holds it, or the folder belongs to a run
            with other settings or content.
    """
    dist.check_equal(content)
    with contextlib.ExitStack() as locks:
        dist.on_main(lambda: _claim(config, content, folds, resume, locks))
        yield


def _claim(
    config: Config, content: Mapping[str, Any], folds: list[int], resume: bool, locks: contextlib.ExitStack
) -> None:
    run_dir = Path(config.run.output_dir)
    config_path = run_dir / "config.yaml"
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run.output_dir: '{run_dir}' is a file. Choose a folder.")
    if resume and not config_path.is_file():
        raise ConfigError(f"{run_dir}: there is no run to continue. Leave out --resume to start one.")
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / ".claim.lock", wait=60, advice="Start this job once more."):
        if config_path.is_file():
            if not resume and (not folds or any(fold_dir(run_dir, f).exists() for f in folds)):
                raise ConfigError(
                    f"{run_dir} already holds a run. Continue it with --resume or choose another run.output_dir."
                )
            content = {**content, **check_same_run(config, content)}
        elif any(not path.name.startswith(".") and path.name != IDENTITY for path in run_dir.iterdir()):
            raise ConfigError(
                f"run.output_dir: '{run_dir}' holds files but no run. Choose another folder, or empty this one."
            )
        ours = [fold_dir(run_dir, fold) for fold in folds if not is_finished(run_dir, fold)] if folds else [run_dir]
        advice = "Wait for it" + (", or take other folds with --folds." if folds else ".")
        locks.enter_context(locked(*(run_dir / f".{folder.name}.lock" for folder in ours), advice=advice))
        write_json(run_dir / IDENTITY, {"format": 1, "content": content})
        _write_config(config_path, config)
        _write_job(run_dir, folds, resume)
        for folder in ours:
            folder.mkdir(exist_ok=True)
            for half_written in folder.glob(".*.tmp"):  # of a job that was killed while it wrote
                half_written.unlink(missing_ok=True)


def _write_config(path: Path, config: Config) -> None:
    """Writes the settings of a new run, or into those of an old one a larger number of folds."""
    if path.is_file():
        stored = load_config(path)
        if stored.run.num_folds >= config.run.num_folds:
            return
        config = replace(stored, run=replace(stored.run, num_folds=config.run.num_folds))
    write_text(path, config.to_yaml())


def _write_job(run_dir: Path, folds: list[int], resume: bool) -> None:
    """Writes what the first job was started with, and a line for each job."""
    command, surroundings = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), environment()
    if not (run_dir / "environment.json").is_file():
        write_text(run_dir / "command.txt", command + "\n")
        write_json(run_dir / "environment.json", surroundings)
    job = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "host": platform.node(), "command": command, "folds": folds}
    with (run_dir / "jobs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(job | {"resume": resume, "environment": surroundings}) + "\n")


def environment() -> dict[str, Any]:
    """Returns versions and machine facts that a result depends on."""
    import importlib.metadata

    import ipiqa

    packages = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scipy", "pillow", "omegaconf")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "ipiqa": ipiqa.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "gpus": gpus,
        "num_processes": dist.world_size(),
        "num_threads": torch.get_num_threads(),
        **versions,
    }
