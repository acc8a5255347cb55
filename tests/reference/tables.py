"""Stand-ins for the published annotation tables: their file names, row by row, with made-up prompts and scores.

The names are what the reference draws its splits from. They follow a pattern, so the tables themselves, whose licence
is their authors', need not be here.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import openpyxl

AGIQA_3K_GENERATORS = (
    "AttnGAN_normal", "DALLE2_normal", "glide_normal", "midjourney_lowstep", "midjourney_normal", "sd1.5_highcorr",
    "sd1.5_lowcorr", "sd1.5_lowstep", "sd1.5_normal", "xl2.2_normal",
)  # fmt: skip
# Prompts that a generator was not run on, or refused.
AGIQA_3K_MISSING = {
    "DALLE2_normal": {8, 47, 58, 59, 67, 97, 147, 162, 238, 272},
    "midjourney_lowstep": {45, 83, 229, 238},
    "midjourney_normal": {45, 83, 229, 238},
}


def agiqa_3k_names() -> list[str]:
    """Returns the 2,982 image names of AGIQA-3k in the order of its table."""
    return [
        f"{generator}_{number:03d}.jpg"
        for generator in AGIQA_3K_GENERATORS
        for number in range(300)
        if number not in AGIQA_3K_MISSING.get(generator, ())
    ]


def agiqa_1k_names() -> list[str]:
    """Returns the 1,080 image names of AGIQA-1k in the order of its table; the last one stands in it twice."""
    numbers = [
        (generator, str(subject), str(scene), str(place), str(style))
        for generator, num_subjects, num_scenes in (("deepai", 12, 15), ("dreamStudio", 9, 10))
        for subject in range(num_subjects)
        for scene in range(num_scenes)
        for place in range(2)
        for style in range(2)
    ]
    numbers.remove(("dreamStudio", "8", "5", "0", "0"))
    names = ["_".join(fields) + ".jpg" for fields in sorted(numbers)]
    return [*names, names[-1]]


def write_table(folder: Path, database: str) -> Path:
    """Writes the stand-in table of "agiqa1k" or "agiqa3k" under its published name and returns its path."""
    generator = np.random.default_rng(0)
    if database == "agiqa3k":
        path = folder / "data.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "prompt", "mos_quality", "mos_align"])
            for name in agiqa_3k_names():
                number = name.removesuffix(".jpg").rpartition("_")[2]
                writer.writerow([name, f"prompt number {number}", *generator.uniform(0, 5, 2).round(4)])
        return path
    path = folder / "AIGC_MOS_Zscore.xlsx"
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["Image", "Prompt", "MOS"])
    for name in agiqa_1k_names():
        fields = name.removesuffix(".jpg").split("_")[1:]
        sheet.append([name, f"prompt {' '.join(fields)}", round(float(generator.uniform(0, 5)), 4)])
    book.save(path)
    return path


def names_sha256(names: list[str]) -> str:
    """Returns the hash of a list of names, as splits.json holds it."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def reference_splits(database: str) -> list[str]:
    """Returns the hashes of the held-out names, in table order, of folds 0, 1, 2 as the reference draws them."""
    content = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))
    hashes: list[str] = content[database]
    return hashes
