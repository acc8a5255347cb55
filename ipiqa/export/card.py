"""The model card: what whoever gets a model must know, as far as it is recorded. Nothing in it is guessed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipiqa import __version__
from ipiqa.evaluation.results import RunResult
from ipiqa.evaluation.summary import Summary, facts, interval_words
from ipiqa.evaluation.typed import parse
from ipiqa.models.bundle import ModelSpec
from ipiqa.report.render import MISSING, markdown_table, render
from ipiqa.report.tables import label, number


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
