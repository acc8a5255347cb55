"""`ipiqa.load`: a scorer of whatever training, export or others have left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ipiqa.errors import ConfigError, DataError
from ipiqa.files import content_sha256
from ipiqa.models.bundle import CONFIG, WEIGHTS, ModelSpec
from ipiqa.models.checkpoints import read_checkpoint
from ipiqa.models.clip_weights import load_exactly
from ipiqa.registry import file_path
from ipiqa.scoring.model_scorer import ModelScorer, Precision
from ipiqa.scoring.scorer import Scorer


def load(
    what: str | Path, device: str = "auto", amp: Precision = "none", *, folds: Sequence[int] | None = None
) -> Scorer:
    """Returns the scorer that a bundle, a checkpoint or a run folder holds; no other file is needed.

    Args:
        what: a bundle or fold folder, a checkpoint such as best.pt, or a run folder, of which each score is the mean
            over its folds' best epochs.
        device: "auto" takes a GPU where there is one; "cpu", "cuda", "cuda:1", ...
        amp: precision; "bf16" is faster and changes scores a little.
        folds: which folds of a run folder; None for all.

    A file that is missing, damaged or does not say which model it belongs to is a DataError, a device that is not
    there a ConfigError.
    """
    return load_models(what, device, amp, folds=folds)


def load_models(
    what: str | Path, device: str = "auto", amp: Precision = "none", *, folds: Sequence[int] | None = None
) -> ModelScorer:
    """Returns the scorer of models trained by this framework; arguments and errors as for `load`."""
    specs: list[ModelSpec] = []
    models = []
    for path in _checkpoints(what, folds):
        checkpoint, where = read_checkpoint(path, "ipiqa.load"), f"ipiqa.load: '{path}'"
        if (spec := checkpoint.spec) is None:
            how = f"ipiqa.build_model(CONFIG, 'run.checkpoint={path}')"
            raise DataError(f"{where} does not say which model it belongs to. Build that from its config: {how}.")
        if not spec.targets:
            raise DataError(f"{where} was pre-trained and scores nothing. Train it on scores first.")
        specs.append(spec)
        if problems := ["its targets are others"] * (spec.targets != specs[0].targets) + spec.differences(specs[0]):
            raise DataError(f"{where}: not of the first fold's model: {problems[0]}. Load it alone.")
        models.append(spec.build())
        load_exactly(models[-1], checkpoint.tensors, where, checkpoint.may_miss)
    return ModelScorer(models, specs, device=device, amp=amp)


def model_sha256(what: str | Path, folds: Sequence[int] | None = None) -> str:
    """Returns 16 hexadecimal digits of the content of the files that `load` reads, or of a name that is no file."""
    if not os.path.exists(what):  # noqa: PTH110 (exists raises for a long path)
        return hashlib.sha256(str(what).encode()).hexdigest()[:16]
    files = []
    for path in _checkpoints(what, folds):
        files += [path / CONFIG, path / WEIGHTS] if path.is_dir() else [path]
    return hashlib.sha256("".join(content_sha256(files)).encode()).hexdigest()[:16]


def _checkpoints(what: str | Path, folds: Sequence[int] | None) -> list[Path]:
    """Returns the checkpoint files, or the bundles, that a path stands for."""
    path = Path(file_path(str(what), "ipiqa.load"))
    is_folder = os.path.isdir(path) and not (path / CONFIG).is_file()  # noqa: PTH112 (is_dir raises for a long path)
    if not is_folder or (path / "best.pt").is_file():
        if folds is not None:
            raise ConfigError(f"ipiqa.load: folds: '{path}' is not a run folder. Leave folds out.")
        return [path / "best.pt" if is_folder else path]
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
