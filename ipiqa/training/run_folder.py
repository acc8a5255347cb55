"""The folder of a run: who may write where, and what must be the same for a run to be continued."""

import contextlib
import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ipiqa import __version__, dist
from ipiqa.build import Data
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets.checks import image_set_sha256
from ipiqa.datasets.splits import Split
from ipiqa.engine.log import recording
from ipiqa.engine.stop import StopSignals
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.files import content_sha256, locked, seed_dir, write_json, write_text
from ipiqa.models import bundle
from ipiqa.registry import flatten

logger = logging.getLogger("ipiqa")

CONFIG, IDENTITY = "config.yaml", "identity.json"  # settings, and what is read, by hash: later jobs are compared

# Settings that a continued run may change: not what comes out of it. Of paths, the content is compared instead.
_HARMLESS_RUN = ("output_dir", "num_workers", "log_every", "save_every", "device", "num_folds", "seeds")
_HARMLESS_DATA = (
    "annotations", "images", "shards", "val_shards", "image_cache", "feature_cache", "cache_dir", "cache_limit_gb",
)  # fmt: skip
HARMLESS = frozenset(
    [f"run.{name}" for name in _HARMLESS_RUN] + [f"dataset.{name}" for name in _HARMLESS_DATA] + ["split.file"]
)


def _named_weights(config: Config) -> dict[str, Any]:
    """Returns the settings that name a file of weights, whose content counts and not its path."""
    towers = {name: value for name, value in flatten({"model": config.model}).items() if name.endswith(".weights")}
    return towers | {"run.checkpoint": config.run.checkpoint}


def identity_of(config: Config) -> dict[str, Any]:
    """Returns the settings that decide the numbers of a run, by dotted name; for files see `content_of`."""
    left_out = HARMLESS | _named_weights(config).keys()
    kept = {"run.num_folds"} if config.split.kind == "kfold" else set()  # there it decides the splits
    return {name: value for name, value in flatten(config.to_dict()).items() if name in kept or name not in left_out}


def checkpoint_path(config: Config, fold: int) -> str:
    """Returns the file that `run.checkpoint` means for a fold: a bundle's weights, or a run's best.pt of that fold."""
    path = Path(str(config.run.checkpoint))
    of_seed = seed_dir(path, config.run.seed)
    path = of_seed if of_seed.is_dir() else path
    if (path / bundle.CONFIG).is_file():
        return str(path / bundle.WEIGHTS)
    return str(fold_dir(path, fold) / "best.pt") if path.is_dir() else str(path)


def weights_of(config: Config, folds: Iterable[int] = ()) -> dict[str, Any]:
    """Returns the sha256 of every file of weights by the setting that names it; a value that names none as it is.

    Where `run.checkpoint` is a folder, that are its files for the folds.
    """
    named = _named_weights(config)
    if config.run.checkpoint is not None and Path(config.run.checkpoint).is_dir():
        named["run.checkpoint"] = "a folder"
        named |= {f"run.checkpoint of fold {fold}": checkpoint_path(config, fold) for fold in folds}
    files = [value for value in dict.fromkeys(named.values()) if value is not None and Path(value).is_file()]
    hashes = dict(zip(files, content_sha256([Path(file) for file in files]), strict=True))
    return {name: hashes.get(value, value) for name, value in named.items()}


def content_of(device: torch.device, data: Data | None, splits: Iterable[Split]) -> dict[str, Any]:
    """Returns what decides the numbers of a job apart from its settings and weights, by name.

    On the CPU that is also the number of threads, which decides the order of sums.
    """
    content: dict[str, Any] = {"the number of processes": dist.world_size()}
    if device.type == "cpu":
        content["the number of CPU threads (OMP_NUM_THREADS)"] = torch.get_num_threads()
    if data is not None:
        content["the annotation table (sha256)"] = data.table.sha256
        content["the image files (sha256)"] = image_set_sha256(data.table, data.image_hashes)
    return content | {f"sha256 of the split of fold {split.fold}": split.sha256 for split in splits}


def check_same_command(config: Config, **arguments: Any) -> None:
    """Raises ConfigError where the processes of a job have other settings or arguments; paths of data may differ."""
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in HARMLESS or not k.startswith("dataset.")}
    dist.check_equal(settings | {f"--{name}": value for name, value in arguments.items()})


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises ConfigError, naming each difference, where a run would go on under other conditions than it began with."""
    values = [(name, before.get(name), now.get(name)) for name in {**before, **now}]
    changes = "; ".join(f"{name} was {shorten(old)}, is {shorten(new)}" for name, old, new in values if old != new)
    if changes:
        advice = "Set these back, or choose another run.output_dir."
        raise ConfigError(f"{where}: cannot be continued, this would change its results: {changes}. {advice}")


def check_same_run(config: Config, content: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Compares settings and content with those that the run in `run.output_dir` was begun with; returns the latter.

    Content that the run has not recorded, such as the splits of folds to come, is not compared. Raises ConfigError,
    naming each difference, and DataError where the record of the run cannot be read.
    """
    run_dir = Path(config.run.output_dir)
    stored = load_config(run_dir / CONFIG)
    check_identity({"run.seeds": stored.run.seeds}, {"run.seeds": config.run.seeds}, run_dir)
    recorded = _read_content(run_dir / IDENTITY)
    common = [name for name in content if name in recorded]
    before, now = ({name: values[name] for name in common} for values in (recorded, content))
    check_identity(identity_of(stored) | before, identity_of(config) | now, run_dir)
    return stored, recorded


def _read_content(path: Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))["content"]
        if isinstance(content, dict) and all(isinstance(value, (str, int, type(None))) for value in content.values()):
            return content
    raise DataError(f"{path}: not the identity of a run. Restore it, or choose another run.output_dir.")


def fold_dir(run_dir: Path, fold: int) -> Path:
    """Returns the folder of one fold, counted from 0."""
    return run_dir / f"fold_{fold:02d}"


def of_seeds(config: Config) -> list[Config]:
    """Returns the config of the run of each seed, each with a folder of its own; without `run.seeds`, this one."""
    run = config.run
    runs = [
        replace(run, seed=n, seeds=None, output_dir=str(seed_dir(Path(run.output_dir), n))) for n in run.seeds or ()
    ]
    return [replace(config, run=one) for one in runs] or [config]


def begin_seeds(config: Config, *, resume: bool) -> list[bool]:
    """Records the seeds of a run, and returns for each whether its run is begun; seeds may be added later.

    Raises ConfigError where the folder holds another run.
    """
    with _opened(Path(config.run.output_dir), resume) as run_dir:
        seeds = list(config.run.seeds or ())
        if (run_dir / CONFIG).is_file():
            stored = load_config(run_dir / CONFIG)
            if stored.run.seeds is None:
                check_identity({"run.seeds": None}, {"run.seeds": seeds}, run_dir)
            check_identity(identity_of(stored), identity_of(config), run_dir)
            seeds = list(dict.fromkeys([*(stored.run.seeds or ()), *seeds]))
        write_text(run_dir / CONFIG, replace(config, run=replace(config.run, seeds=seeds)).to_yaml())
        for seed in seeds:  # so that a report knows those that are still missing
            seed_dir(run_dir, seed).mkdir(exist_ok=True)
    return [(Path(one.run.output_dir) / CONFIG).is_file() for one in of_seeds(config)]


def is_finished(run_dir: Path, fold: int) -> bool:
    """Returns whether a fold has its scores."""
    return (fold_dir(run_dir, fold) / "scores.json").is_file()


def is_restarted(run_dir: Path) -> bool:
    """Returns whether torchrun has started this job again and its first life got as far as to begin the run."""
    return dist.restarts() > 0 and (run_dir / CONFIG).is_file()


@contextlib.contextmanager
def claimed(config: Config, content: Mapping[str, Any], folds: list[int], *, resume: bool) -> Iterator[StopSignals]:
    """Holds the run folder, its log and the signals while the block runs; of a run with folds, those asked for alone.

    The first job records settings and content (see `content_of`, `weights_of`); every later one is compared with them.
    Several jobs may share a run folder, each with folds of its own. A run without folds has the folder for itself.
    Raises ConfigError where a fold is there and `resume` is off, or another job holds it, or the run is another one.
    """
    dist.check_equal(content)
    with contextlib.ExitStack() as locks:
        dist.on_main(lambda: _claim(config, content, folds, resume, locks))
        with recording(Path(config.run.output_dir) / "train.log"), StopSignals() as stop:
            yield stop


def _claim(
    config: Config, content: Mapping[str, Any], folds: list[int], resume: bool, locks: contextlib.ExitStack
) -> None:
    stored = None
    with _opened(Path(config.run.output_dir), resume) as run_dir:
        if (config_path := run_dir / CONFIG).is_file():
            if not resume and (not folds or any(fold_dir(run_dir, f).exists() for f in folds)):
                advice = "Continue it with --resume or choose another run.output_dir."
                raise ConfigError(f"{run_dir} already holds a run. {advice}")
            stored, recorded = check_same_run(config, content)
            content = {**content, **recorded}
            config = replace(stored, run=replace(stored.run, num_folds=max(stored.run.num_folds, config.run.num_folds)))
        ours = [fold_dir(run_dir, fold) for fold in folds if not is_finished(run_dir, fold)] if folds else [run_dir]
        advice = "Wait for it" + (", or take other folds with --folds." if folds else ".")
        locks.enter_context(locked(*(run_dir / f".{folder.name}.lock" for folder in ours), advice=advice))
        write_json(run_dir / IDENTITY, {"format": 1, "content": content})
        if config != stored:
            write_text(config_path, config.to_yaml())
        record_job(run_dir, folds, resume)
        for folder in ours:
            folder.mkdir(exist_ok=True)
            for half_written in folder.glob(".*.tmp"):  # of a job that was killed while it wrote
                half_written.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(run_dir: Path, resume: bool) -> Iterator[Path]:
    """Makes a run folder and holds it while the block runs; ConfigError where it cannot be a run's, or resumed."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run.output_dir: '{run_dir}' is a file. Choose a folder.")
    if resume and not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir}: there is no run to continue. Leave out --resume to start one.")
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / ".claim.lock", wait=60, advice="Start this job once more."):
        others = [path for path in run_dir.iterdir() if not path.name.startswith(".") and path.name != IDENTITY]
        if others and not (run_dir / CONFIG).is_file():
            advice = "Choose another folder, or empty this one."
            raise ConfigError(f"run.output_dir: '{run_dir}' holds files but no run. {advice}")
        yield run_dir


def record_job(run_dir: Path, folds: list[int], resume: bool) -> None:
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
    packages = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scipy", "pillow", "omegaconf")
    versions = dict.fromkeys(packages, "not installed")
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "ipiqa": __version__, "python": platform.python_version(), "platform": platform.platform(),
        "processor": platform.machine(), "num_processes": dist.world_size(), "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())], **versions,
    }  # fmt: skip
