"""Where a run is wrong: held-out images and groups by the distance of prediction and MOS."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ipiqa.evaluation.results import RunResult


def pooled(run: RunResult, target: str, checkpoint: str) -> pd.DataFrame:
    """Returns image, prompt, group, mos and prediction of all folds; an image held out twice is there twice."""
    columns = {f"mos_{target}": "mos", f"{checkpoint}_{target}": "prediction"}
    names = ["image", "prompt", "group", *columns]
    parts = [fold.predictions[names] for fold in run.folds if fold.predictions is not None]
    return (pd.concat(parts) if parts else pd.DataFrame(columns=names)).rename(columns=columns)


def image_residuals(images: pd.DataFrame) -> pd.DataFrame:
    """Returns every image of `pooled` once, from the most over-rated to the most under-rated.

    Its prediction is the mean over the folds that hold it out; the column `residual` is prediction - MOS.
    """
    images = images[np.isfinite(images[["prediction", "mos"]].astype(float)).all(axis=1)]
    keys = ["image", "mos"]  # a table may hold two rows of one name
    out = images.groupby(keys, as_index=False).agg({"prompt": "last", "group": "last", "prediction": "mean"})
    out["residual"] = out["prediction"] - out["mos"]
    return out.sort_values(["residual", "image"], ascending=[False, True], ignore_index=True)


def group_residuals(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with two images or more of `image_residuals`, the largest mean absolute residual first.

    Columns: group, prompt (one of them), num_images, mean and mean_absolute residual.
    """
    parts = images.assign(absolute=images["residual"].abs()).groupby("group", as_index=False)
    residuals = {"mean": ("residual", "mean"), "mean_absolute": ("absolute", "mean")}
    out = parts.agg(prompt=("prompt", "min"), num_images=("image", "size"), **residuals)
    out = out[out["num_images"] > 1]
    return out.sort_values(["mean_absolute", "group"], ascending=[False, True], ignore_index=True)
