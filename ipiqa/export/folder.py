"""The folder to share: a bundle, or one for each fold, and a model card."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ipiqa.errors import DataError
from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import Summary, summarise
from ipiqa.export.card import model_card
from ipiqa.export.files import new
from ipiqa.files import write_text
from ipiqa.models.bundle import README, write_bundle
from ipiqa.scoring.loading import Loaded, read_models


def export_folder(what: str | Path, folder: Path, *, folds: Sequence[int] | None = None) -> int:
    """Writes what `ipiqa.load` takes and people can read; returns the number of folds.

    One model is a plain bundle, several are one in fold_00/, fold_01/, ... each. The card says what is known of data,
    results and licences. `what` and `folds` are as for `ipiqa.load`; ConfigError where the folder is not empty.
    """
    loaded = read_models(what, folds)
    reads_prompt = any(getattr(one.model, "reads_prompt", True) for one in loaded)
    card = model_card(folder.resolve().name, [one.spec for one in loaded], _results(loaded), reads_prompt=reads_prompt)
    with new(folder) as temporary:
        for one in loaded:
            write_bundle(temporary / one.folder.name if len(loaded) > 1 else temporary, one.model, one.spec)
        write_text(temporary / README, card)
    return len(loaded)


def _results(loaded: Sequence[Loaded]) -> Summary | None:
    """Returns what a run folder around the best.pt of its folds says of these, None where there is no such.

    DataError where a checkpoint is of another split than the results beside it.
    """
    best = [one for one in loaded if one.path is not None and one.path.name == "best.pt"]
    splits = {one.folder / "scores.json": one.spec.training.split_sha256 for one in best}
    splits = {path: split for path, split in splits.items() if path.is_file() and path.parent.name.startswith("fold_")}
    if not splits:
        return None
    run = load_run(best[0].folder.parent)
    numbers = {int(path.parent.name[5:]): split for path, split in splits.items()}
    folds = tuple(fold for fold in run.folds if fold.number in numbers)
    if any(numbers[fold.number] not in ("", fold.scores.split.sha256) for fold in folds):
        problem = "best.pt and scores.json of a fold are of different splits"
        raise DataError(f"{run.run_dir}: {problem}. Export a run whose files belong together.")
    return summarise(replace(run, folds=folds, num_folds=None))
