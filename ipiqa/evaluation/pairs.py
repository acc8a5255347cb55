"""The held-out pairs of a fold trained on preferences: pairs.csv, beside predictions.csv, which is of images."""

from pathlib import Path

import numpy as np
import pandas as pd

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.files import write_text

PAIRS, COLUMNS = "pairs.csv", ["image_a", "image_b", "preferred"]
_SIGNS = {"a": 1.0, "b": -1.0, "tie": np.nan}


def write_pairs(folder: Path, table: AnnotationTable, rows: np.ndarray) -> None:
    """Writes the pairs that a table of preferences has among rows, and what was chosen; of others, no file."""
    if (pairs := table.comparisons) is not None:
        cells = [[*(table.names[row] for row in pairs.rows[i]), pairs.words[i]] for i in pairs.within(rows)]
        write_text(folder / PAIRS, pd.DataFrame(cells, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))


def read_pairs(path: Path, predictions: pd.DataFrame | None) -> pd.DataFrame | None:
    """Returns the pairs of a fold, None where it has none; DataError: not pairs of the images of its predictions."""
    if predictions is None or not path.is_file():
        return None
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")[COLUMNS]
        is_known = frame[COLUMNS[:2]].isin(set(predictions["image"])).all(axis=None) and predictions["image"].is_unique
        if not is_known or not frame["preferred"].isin(_SIGNS).all():
            raise ValueError("an image without a prediction, or a choice that is not a, b or tie")
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        problem = " ".join(str(error).split())[:100]
        raise DataError(f"{path}: not the pairs of a fold ({problem}). Run the fold again.") from None
    return frame


def by_pair(predictions: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns predictions with a row a pair, called by both images: 1 for a, -1 for b, nan for a tie as the MOS.

    Predictions are by how much image a scores higher than image b.
    """
    a, b = (predictions.set_index("image").loc[pairs[side]].reset_index(drop=True) for side in COLUMNS[:2])
    ahead = a.select_dtypes("number") - b.select_dtypes("number")
    signs = {name: pairs["preferred"].map(_SIGNS) for name in ahead if name.startswith("mos_")}
    return a.assign(image=pairs["image_a"] + " | " + pairs["image_b"], **{**ahead, **signs})
