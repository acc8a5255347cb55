"""`ipiqa.load`: a scorer of whatever training, export or others have left."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ipiqa import registry
from ipiqa.config.loading import parse_override
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError, did_you_mean, located
from ipiqa.files import content_sha256, seed_folders
from ipiqa.models.bundle import CONFIG, README, WEIGHTS, ModelSpec, Training, read_checkpoint
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.weights import one_line, printable
from ipiqa.scorers.table import ScoreTable
from ipiqa.scoring.images import OneImage
from ipiqa.scoring.model_scorer import ModelScorer, Precision
from ipiqa.scoring.scorer import Scorer

ONNX, HUB = ".onnx", "hf-hub:"  # what names of exported graphs end with, and of models on the Hugging Face Hub begin
FOLDERS = ("", "fold_*/", "seed_*/fold_*/")
PATTERNS = [README, *(f"{f}{name}" for f in FOLDERS for name in (CONFIG, WEIGHTS))]  # nothing else is downloaded


class TableScorer(Scorer):
    """Gives the scores of a table as they are; no image file need be there."""

    needs_prompt, image_size, trained_on = False, 0, Training()

    def __init__(self, table: ScoreTable) -> None:
        self.table, self.targets = table, tuple(Target(column) for column in table.columns)

    def prepare(self, image: OneImage) -> str:
        if not isinstance(image, (str, Path)):
            raise DataError(f"images: {type(image).__name__} is not in '{self.table.path}'. Give paths.")
        return Path(image).as_posix()

    def outputs(self, prepared: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        return self.table.of(prepared, prompts)[None].astype(np.float32)


def load(
    what: str | Path, device: str = "auto", amp: Precision = "none", *, folds: Sequence[int] | None = None
) -> Scorer:
    """Returns the scorer that a bundle, a checkpoint or a run folder holds; no other file is needed.

    Args:
        what: a bundle or fold folder, a checkpoint such as best.pt, or a run folder, of which each score is the mean
            over its seeds' and folds' best epochs; a file of `ipiqa export`, FILE.onnx; "hf-hub:OWNER/NAME" or
            "hf-hub:OWNER/NAME@REVISION"; a registered scorer and its settings, such as
            "clipscore architecture=RN50-quickgelu" or "table scores=scores.csv column=brisque".
        device: "auto" takes a GPU where there is one; "cpu", "cuda", "cuda:1", ...
        amp: precision; "bf16" is faster and changes scores a little.
        folds: which folds of a run folder; None for all.

    A file that is missing, damaged or does not say which model it belongs to is a DataError, a device that is not
    there a ConfigError.
    """
    if str(what).partition(" ")[0] == "table":
        _refuse_folds(folds, what)
        return TableScorer(_registered(str(what)))
    if not str(what).lower().endswith(ONNX):
        return load_models(what, device, amp, folds=folds)
    from ipiqa.scoring.onnx_scorer import OnnxScorer

    if amp != "none" or folds is not None:
        setting = "folds" if amp == "none" else "amp"
        raise ConfigError(f"ipiqa.load: {setting}: '{what}' is scored as it was exported. Leave {setting} out.")
    return OnnxScorer(Path(registry.file_path(str(what), "ipiqa.load")), device=device)


def load_models(
    what: str | Path, device: str = "auto", amp: Precision = "none", *, folds: Sequence[int] | None = None
) -> ModelScorer:
    """Returns the scorer of models trained by this framework; arguments and errors as for `load`."""
    loaded = read_models(what, folds)
    return ModelScorer([one.model for one in loaded], [one.spec for one in loaded], device=device, amp=amp)


class Loaded(NamedTuple):
    """A model as it was trained, what it is, and the checkpoint or the bundle it came from (None: neither)."""

    model: nn.Module
    spec: ModelSpec
    path: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint, such as fold_00 of a run, or of the bundle."""
        path = (self.path or Path()).absolute()
        return path if path.is_dir() else path.parent

    @property
    def run_dir(self) -> Path:
        """The folder of the run that the fold belongs to, of all its seeds."""
        parent = self.folder.parent
        return parent.parent if parent.name.startswith("seed_") else parent


def read_models(what: str | Path, folds: Sequence[int] | None = None) -> list[Loaded]:
    """Returns the models of one kind, one per seed and fold, that `what` stands for; the rest is as for `load`."""
    if str(what).partition(" ")[0] in registry.list_registered("scorer"):
        _refuse_folds(folds, what)
        part = _registered(str(what))
        if isinstance(part, ScoreTable):
            raise DataError(f"ipiqa.load: '{what}' is a table of scores. Give a model.")
        return [Loaded(part[1], part[0])]
    if str(what).lower().endswith(ONNX) and os.path.isfile(what):  # noqa: PTH113 (is_file raises for a long path)
        raise DataError(f"ipiqa.load: '{what}' can only be scored with. Give the model it was exported from.")
    loaded: list[Loaded] = []
    for path in _checkpoints(_local(what), folds):
        checkpoint, where = read_checkpoint(path, "ipiqa.load"), f"ipiqa.load: '{path}'"
        if (spec := checkpoint.spec) is None:
            how = f"ipiqa.build_model(CONFIG, 'run.checkpoint={path}')"
            raise DataError(f"{where} does not say which model it belongs to. Build that from its config: {how}.")
        if not spec.targets:
            raise DataError(f"{where} was pre-trained and scores nothing. Train it on scores first.")
        first = loaded[0].spec if loaded else spec
        if problems := ["its targets are others"] * (spec.targets != first.targets) + spec.differences(first):
            raise DataError(f"{where}: not of the first fold's model: {problems[0]}. Load it alone.")
        loaded.append(Loaded(spec.build(), spec, path))
        load_exactly(loaded[-1].model, checkpoint.tensors, where, checkpoint.may_miss)
    return loaded


def _registered(what: str) -> Any:
    """Returns what a registered scorer gives, for settings written as "name key=value key=value"."""
    name, _, settings = what.partition(" ")
    with located(f"ipiqa.load: {name}"):
        section = {"name": name} | _given(settings)
        return registry.build("scorer", registry.resolve("scorer", section, "settings"), "settings", {})


def _given(settings: str) -> dict[str, Any]:
    """Returns the values of "key=value key=value"; they may hold spaces, and files on the Hub are fetched."""
    pairs = map(parse_override, re.split(r" +(?=[\w.]+=)", settings) if settings else [])
    is_file = re.compile(f"{HUB}[^/]+/[^/]+/.+").fullmatch
    return {key: str(_local(value)) if is_file(str(value)) else value for key, value in pairs}


def _refuse_folds(folds: Sequence[int] | None, what: str | Path) -> None:
    if folds is not None:
        raise ConfigError(f"ipiqa.load: folds: '{what}' is not a run folder. Leave folds out.")


def model_sha256(what: str | Path, folds: Sequence[int] | None = None) -> str:
    """Returns 16 hexadecimal digits of the content of the files that `load` reads, and of the name of a scorer."""
    local, text = _local(what), ""
    files: list[Path] = []
    if os.path.exists(local):  # noqa: PTH110 (exists raises for a long path)
        for path in _checkpoints(local, folds):
            files += [path / CONFIG, path / WEIGHTS] if path.is_dir() else [path, path.with_name(f"{path.name}.data")]
    else:
        text = str(what)
        settings = text.partition(" ")[2]
        files = [Path(str(value)).expanduser() for value in _given(settings).values()] if "=" in settings else []
    hashes = content_sha256([file for file in files if file.is_file()])
    return hashlib.sha256("".join([*hashes, text]).encode()).hexdigest()[:16]


def _local(what: str | Path) -> str | Path:
    """Returns a path; of a model on the Hub its folder, of OWNER/NAME/FILE that file. What was downloaded is kept.

    DataError where there is no such repository, it is not ours to read, or the network is away and nothing was kept.
    """
    if not str(what).startswith(HUB):
        return what
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    repository, _, revision = str(what).removeprefix(HUB).partition("@")
    owner, name, file = (*repository.split("/", 2), "", "")[:3]
    no_access = "no such repository, or none you have access to. For access: hf auth login"
    known: dict[type[Exception], str] = {
        errors.RepositoryNotFoundError: no_access,
        errors.RevisionNotFoundError: f"it has no revision {revision!r}. Leave out @{revision} for the newest",
        errors.HFValidationError: "no name of a repository. Write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION",
        errors.LocalEntryNotFoundError: "not reached, nor downloaded before. Check the network and HF_ENDPOINT",
        errors.EntryNotFoundError: f"it has no file {file!r}",
    }
    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision or None))
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client has many of its own for a network that does not answer
        is_closed = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        problem = next((text for kind, text in known.items() if isinstance(error, kind)), one_line(error))
        raise DataError(f"ipiqa.load: '{printable(what)}': {no_access if is_closed else problem}.") from None


def _checkpoints(what: str | Path, folds: Sequence[int] | None) -> list[Path]:
    """Returns the checkpoint files, or the bundles, that a path stands for."""
    path = Path(registry.file_path(str(what), "ipiqa.load"))
    if not os.path.exists(path):  # noqa: PTH110 (exists raises for a long path)
        scorers = registry.list_registered("scorer")
        kinds = f"a checkpoint, bundle, run folder, .onnx file, {HUB}OWNER/NAME, or {', '.join(scorers)}"
        near = did_you_mean(str(what).partition(" ")[0], scorers)
        raise DataError(f"ipiqa.load: '{printable(what)}' does not exist.{near} Give {kinds}.")
    is_folder = os.path.isdir(path) and not (path / CONFIG).is_file()  # noqa: PTH112 (is_dir raises for a long path)
    if not is_folder or (path / "best.pt").is_file():
        _refuse_folds(folds, path)
        return [path / "best.pt" if is_folder else path]
    if of_seeds := seed_folders(path):
        begun = [one for one in of_seeds.values() if folds is not None or any(map(_of_fold, one.glob("fold_*")))]
        return [file for one in begun or of_seeds.values() for file in _checkpoints(one, folds)]
    found = [(fold, file) for fold in sorted(path.glob("fold_*")) if (file := _of_fold(fold)) is not None]
    of_fold = {int(number): file for fold, file in found if (number := fold.name[5:]).isdecimal()}
    if not of_fold:
        raise DataError(f"ipiqa.load: '{path}' holds neither a bundle nor a best.pt of any fold. Give one that does.")
    chosen = [*of_fold] if folds is None else [*folds]
    if not chosen or not {*chosen} <= of_fold.keys():
        missing = [fold for fold in chosen if fold not in of_fold] or "none"
        raise DataError(f"ipiqa.load: '{path}' has no best.pt of fold {missing}. There are: {str([*of_fold])[1:-1]}.")
    return [file for fold, file in of_fold.items() if fold in chosen]


def _of_fold(folder: Path) -> Path | None:
    """Returns what a fold's folder holds: a best.pt, or the bundle that was exported of it."""
    return folder / "best.pt" if (folder / "best.pt").is_file() else folder if (folder / CONFIG).is_file() else None
