"""The folder of a run: who may write where, and what must be the same for a run to be continued."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipiqa import dist
from ipiqa.config.loading import Config, load_config
from ipiqa.errors import ConfigError
from ipiqa.files import write_json, write_text

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


def identity_of(config: Config) -> dict[str, Any]:
    """Returns everything in the settings that decides the numbers of a run, by dotted name."""
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in HARMLESS}
    if config.split.kind == "kfold":
        settings["run.num_folds"] = config.run.num_folds
    return settings


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Raises when a run would be continued under other conditions than it began with.

    Raises:
        ConfigError: naming each difference.
    """
    names = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
    if names:
        changes = "; ".join(f"{n} was {found.get(n)!r}, is {wanted.get(n)!r}" for n in names)
        raise ConfigError(
            f"{where}: cannot be continued, this would change its results: {changes}. "
            "Set these back, or choose another run.output_dir."
        )


def fold_dir(run_dir: Path, fold: int) -> Path:
    """Returns the folder of one fold, counted from 0."""
    return run_dir / f"fold_{fold:02d}"


def is_finished(run_dir: Path, fold: int) -> bool:
    """Returns whether a fold has its scores."""
    return (fold_dir(run_dir, fold) / "scores.json").is_file()


def is_restarted(run_dir: Path) -> bool:
    """Returns whether torchrun has started this job again and its first life got as far as to begin the run."""
    return dist.is_restart() and (run_dir / "config.yaml").is_file()


def claim(config: Config, folds: list[int], *, resume: bool) -> None:
    """Makes the folder of the run and of the folds asked for, and writes what the run was started with.

    Several jobs may share a run folder, each with folds of its own. A run without folds has the folder for itself.

    Raises:
        ConfigError: a fold is there already and `resume` is off, or the folder belongs to a run with other settings.
    """
    run_dir = Path(config.run.output_dir)
    config_path = run_dir / "config.yaml"
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run.output_dir: '{run_dir}' is a file. Choose a folder.")
    if config_path.is_file():
        if not resume and (not folds or any(fold_dir(run_dir, f).exists() for f in folds)):
            raise ConfigError(
                f"{run_dir} already holds a run. Continue it with --resume or choose another run.output_dir."
            )
        check_identity(identity_of(load_config(config_path)), identity_of(config), run_dir)
    elif run_dir.exists() and any(not path.name.startswith(".") for path in run_dir.iterdir()):  # ".": being written
        raise ConfigError(
            f"run.output_dir: '{run_dir}' holds files but no run. Choose another folder, or empty this one."
        )
    elif resume:
        raise ConfigError(f"{run_dir}: there is no run to continue. Leave out --resume to start one.")
    else:
        write_text(config_path, config.to_yaml())
    write_text(run_dir / "command.txt", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n")
    write_json(run_dir / "environment.json", environment())
    for fold in folds:
        try:
            fold_dir(run_dir, fold).mkdir(exist_ok=resume)
            for half_written in fold_dir(run_dir, fold).glob(".*.tmp"):  # of a run that was killed while it wrote
                half_written.unlink()
        except FileExistsError:
            raise ConfigError(
                f"{fold_dir(run_dir, fold)}: another job has taken this fold. Choose others with --folds."
            ) from None


def environment() -> dict[str, Any]:
    """Returns versions and machine facts that a result depends on."""
    import importlib.metadata

    import torch

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
