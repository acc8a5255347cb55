"""The commented YAML of `ipiqa data init`."""

import os
from pathlib import Path

import ipiqa
from ipiqa.datasets.discover import Found
from ipiqa.report.render import render

_BASE = Path(ipiqa.__file__).parent / "projects" / "agiqa3k" / "ipiqa_224.yaml"
_SMALL = 1000  # rows; below, every prompt is held out once, which wastes none
_BATCH = 32  # of the base
_WIDE = 20  # end of a scale from which a head, which starts near 0, takes long


def first_config(found: Found, out: Path) -> str:
    """Returns the config that trains on what was found, as it will stand in the file `out`."""
    folds = min(5, found.num_prompts)
    kind = "holdout" if found.num_rows >= _SMALL else "kfold"
    kind = "official" if found.part else kind if folds > 1 else "image_random"
    smallest = found.num_rows * (folds - 1) // folds if folds > 1 else found.num_rows // 2
    return render(
        "init.yaml.j2", found=found, base=os.path.relpath(_BASE, out.absolute().parent), kind=kind,
        folds=1 if found.part else max(folds, 2), output=f"output/{out.stem}/ipiqa",
        batch=max(2, smallest // 4) if smallest < 2 * _BATCH else 0,
        wide=all(score.scale is not None and score.scale[1] > _WIDE for score in found.scores),
    )  # fmt: skip
