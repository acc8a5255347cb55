"""The folder to share: a bundle, or one for each fold, and a model card. Nothing in the card is guessed."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipiqa import __version__
from ipiqa.errors import ConfigError, DataError
from ipiqa.evaluation.results import RunResult, load_run
from ipiqa.evaluation.summary import Summary, facts, interval_words, summarise
from ipiqa.evaluation.typed import parse
from ipiqa.files import write_text
from ipiqa.models.bundle import README, ModelSpec, write_bundle
from ipiqa.report.render import MISSING, markdown_table, render
from ipiqa.report.tables import label, number
from ipiqa.scoring.loading import Loaded, read_models


@contextlib.contextmanager
def new(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder; with what lies beside it, it takes its place when the block ends well.

    ConfigError where the place is taken; an empty folder takes none.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"OUT: '{path}' is there already. Remove it, or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as folder:
        yield Path(folder) / path.name
        if path.is_dir():
            path.rmdir()
        for item in sorted(Path(folder).iterdir(), reverse=True):  # x.onnx.data before x.onnx
            os.replace(item, path.parent / item.name)


def export_folder(what: str | Path, folder: Path, *, folds: Sequence[int] | None = None) -> int:
    """Writes what `ipiqa.load` takes and people can read; returns the number of models.

    One model is a plain bundle, several are one each in fold_00/, fold_01/, ..., or in seed_1/fold_00/ and so on. The
    card says what is known of data, results and licences. `what` and `folds` are as for `ipiqa.load`; ConfigError where
    the folder is not empty.
    """
    loaded = read_models(what, folds)
    reads_prompt = any(getattr(one.model, "reads_prompt", True) for one in loaded)
    card = model_card(folder.resolve().name, [one.spec for one in loaded], _summary(loaded), reads_prompt=reads_prompt)
    with new(folder) as temporary:
        for one in loaded:
            place = one.folder.relative_to(one.run_dir) if len(loaded) > 1 else ""
            write_bundle(temporary / place, one.model, one.spec)
        write_text(temporary / README, card)
    return len(loaded)


def _summary(loaded: Sequence[Loaded]) -> Summary | None:
    """Returns what a run folder around the best.pt of its folds says of these, None where there is no such.

    DataError where a checkpoint is of another split than the results beside it.
    """
    best = [one for one in loaded if one.path is not None and one.path.name == "best.pt"]
    splits = {one.folder / "scores.json": one.spec.training.split_sha256 for one in best}
    splits = {path: split for path, split in splits.items() if path.is_file() and path.parent.name.startswith("fold_")}
    if not splits:
        return None
    run = load_run(best[0].run_dir if len({one.folder.parent for one in best}) > 1 else best[0].folder.parent)
    numbers = {int(path.parent.name[5:]): split for path, split in splits.items()}
    folds = tuple(fold for fold in run.folds if fold.number in numbers)
    if any(numbers[fold.number] not in ("", fold.scores.split.sha256) for fold in folds):
        problem = "best.pt and scores.json of a fold are of different splits"
        raise DataError(f"{run.run_dir}: {problem}. Export a run whose files belong together.")
    return summarise(replace(run, folds=folds, num_folds=None))


def model_card(name: str, specs: Sequence[ModelSpec], summary: Summary | None, *, reads_prompt: bool) -> str:
    """Returns a card in Markdown, with the front matter that hubs read.

    Args:
        name: what the model is called.
        specs: of each fold.
        summary: results of these folds; None where there are none.
        reads_prompt: whether scores depend on prompts.
    """
    known: dict[str, Any] = {"summary": summary, "begun": None}
    if summary is not None:
        known |= {"results": _results(summary), "facts": facts(summary.run), "intervals": interval_words(summary.run)}
        known["begun"] = _weights(summary.run)
    template = Path(__file__).parent / "templates" / "card.md.j2"
    return render(template, name=name, specs=specs, reads_prompt=reads_prompt, version=__version__, **known)


def _results(summary: Summary) -> str:
    """Returns the metrics of the epochs that are exported: over several folds with std and interval of the mean."""
    rows = []
    for (target, checkpoint, metric), spread in summary.spreads.items():
        if checkpoint == "best":
            std, low, high = (MISSING if math.isnan(x) else number(x) for x in (spread.std, spread.low, spread.high))
            interval = MISSING if low == MISSING else f"{low} to {high}"
            rows.append([target, label(metric), number(spread.mean), std, interval])
    return markdown_table(["target", "metric", "mean", "std over folds", "95 % interval of the mean"], rows)


def _weights(run: RunResult) -> dict[str, list[str]] | None:
    """Returns sha256 or name -> settings of all weights that a run began with; None where its folder does not say."""
    path = run.run_dir / "identity.json"
    if not path.is_file():
        return None
    content = parse(dict[str, Any], path.read_text(encoding="utf-8"), path, "Restore it.").get("content")
    begun: dict[str, list[str]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, str) and ("weights" in key or "run.checkpoint" in key):
            begun.setdefault(value, []).append(key)
    return begun
