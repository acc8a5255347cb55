"""The card of a database: the figures on it, for tables that have everything and for those that have little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ipiqa.cli import main
from ipiqa.datasets.databases.published import Agiqa3k
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.report.database import database_card


def test_real_agiqa_3k(shared: Path) -> None:
    dataset = Agiqa3k(annotations=str(shared / "data/agiqa3k/data.csv"), images="x")
    card = database_card(dataset.load(), "x", dataset.about)
    for text in (
        "2,982 rows, 2,982 images, 300 prompts as a model reads them, 300 groups",
        "- published: AGIQA-3k has 2,982 rows; source: https://github.com/lcysyzxdxc/AGIQA-3k-Database",
        "1 with 7, 3 with 8, 9 with 9, 287 with 10",
        "| quality     |               | 0.742 / 0.814 |",
        "| quality   | 21     | 0.986 | 0.990 | 0.963                |",
        "| variant   | 10     | 65.1 %  | 63.0 %    |",
        "| AttnGAN    | 300    | 0.986 ± 0.281 | 0.719 ± 0.298 |",
        r"| midjourney\_normal  | 296    | 3.626 ± 0.394 | 3.310 ± 0.502 |",
        "  2.69 to   3.14  ████████████████████████████████████████ 626",
        "- 10 images: ",
    ):
        assert text in card, text
    assert card.index("| xl2.2 ") < card.index("| midjourney ") < card.index("| AttnGAN ")  # the best first


def test_a_table_with_little_in_it() -> None:
    scores = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan]])
    names, prompts = ("a.png", "b.png", "c.png"), ("a *cat*\nand more", "x" * 300, "a dog")
    targets = (Target("q", 0, 5), Target("w"))
    table = AnnotationTable(names, prompts, scores, targets, prompts, Path("x"), segments={"model": ("", "sd", "sd")})
    card = database_card(table, "mine", None)
    assert "- missing scores: 4, left out of everything below" in card
    assert "| w      | -       | - to -" in card and "(no score)" in card
    assert "The noise ceiling is not known" in card and "licence" not in card
    assert "| (none) | 1      | 1.000 ± 0.000 | - |" in card
    assert "(300 characters)" in card and r"cat\*" not in card.partition("## Prompts")[0]
    assert "| q           |   | - |" in card


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.csv").write_text("name,prompt,mos_quality,mos_align\na_0.jpg,p,1,2\nb_1.jpg,q,1,2\n")
    arguments = ["--cfg-path", "ipiqa/projects/agiqa3k/ipiqa.yaml", f"dataset.annotations={tmp_path}/data.csv"]
    assert main(["data", "card", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# AGIQA-3k\n") and "AGIQA-3k has 2,982 rows, this table has 2" in printed
    assert main(["data", "card", "--out", str(tmp_path / "card.md"), *arguments]) == 0
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == printed
