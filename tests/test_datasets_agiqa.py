"""The two published tables, tables of one's own, and what their settings refuse."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas
import pytest
from reference.tables import agiqa_1k_names, agiqa_3k_names

from ipiqa import registry
from ipiqa.datasets.databases.annotated import OwnTable
from ipiqa.datasets.databases.published import Agiqa1k, Agiqa3k, agiqa_1k_group, agiqa_3k_group
from ipiqa.datasets.splits import make_split
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.processors.image import SquashProcessor

TABLE_3K = "name,prompt,adj1,mos_quality,mos_align\nsd1.5_highcorr_012.jpg,a cat,,1,2\nAttnGAN_normal_003.jpg,NA,,3,4\n"


@pytest.fixture
def table_3k(tmp_path: Path) -> str:
    path = tmp_path / "data.csv"
    path.write_text(TABLE_3K)
    return str(path)


def test_registered() -> None:
    assert {"agiqa_1k", "agiqa_3k", "table"} <= set(registry.list_registered("dataset"))
    section = {"name": "agiqa_3k", "annotations": "a.csv", "images": "folder", "duplicates": "keep"}
    resolved = registry.resolve("dataset", section, "dataset")
    dataset = registry.build("dataset", resolved, "dataset", {})
    assert dataset == Agiqa3k(annotations="a.csv", images="folder", duplicates="keep")
    with pytest.raises(
        ConfigError, match="dataset.duplicates: 'kep' is not one of auto, error, keep, mean. Did you mean"
    ):
        registry.resolve("dataset", section | {"duplicates": "kep"}, "dataset")


def test_real_agiqa_3k(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = shared / "data" / "agiqa3k" / "data.csv"
    with caplog.at_level(logging.WARNING):
        table = Agiqa3k(annotations=str(source), images="x").load()
    assert not caplog.text  # the published groups cut no prompt apart
    assert (len(table), len(set(table.groups)), table.target_names) == (2982, 300, ("quality", "alignment"))
    assert list(table.names) == agiqa_3k_names()
    np.testing.assert_array_equal(table.scores[0], [0.965602553, 0.40889324])
    frame = pandas.read_csv(source, keep_default_na=False)
    joint = frame[["mos_align", "prompt", "mos_quality", "name"]].rename(columns={"name": "Image", "prompt": "Prompt"})
    joint.to_excel(tmp_path / "mos_joint.xlsx", index=False)
    assert Agiqa3k(annotations=str(tmp_path / "mos_joint.xlsx"), images="x").load().sha256 == table.sha256


def test_real_agiqa_1k(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = shared / "data" / "agiqa1k" / "AIGC_MOS_Zscore.xlsx"
    with caplog.at_level(logging.WARNING):
        table = Agiqa1k(annotations=str(source), images="x").load()
    assert (len(table), table.num_images, len(set(table.groups))) == (1080, 1079, 180)
    assert list(table.names) == agiqa_1k_names()
    assert (table.target_names, table.groups[-1], table.prompts[0]) == (
        ("quality",),
        "9_14",
        "bird, driving aircraft, city, anime style",
    )
    expected = "'dreamStudio_8_9_1_1.jpg' (row 1080: 0.441, row 1081: 2.084). They are kept as rows"
    assert expected in caplog.text and len(caplog.records) == 1  # the published groups cut no prompt apart
    with pytest.raises(DataError, match="first 'dreamStudio_8_9_1_1.jpg' \\(row 1080, row 1081\\)"):
        Agiqa1k(annotations=str(source), images="x", duplicates="error").load()
    mean = Agiqa1k(annotations=str(source), images="x", duplicates="mean").load()
    assert len(mean) == 1079 and mean.scores[-1].item() == pytest.approx((0.441416 + 2.084116) / 2, abs=1e-5)

    book = openpyxl.load_workbook(source)
    book.worksheets[0].append(["deepai_0_0_0_0.jpg", "bird, driving aircraft, city, anime style", 1.0])
    book.save(tmp_path / "more.xlsx")
    with pytest.raises(
        DataError, match="2 of 1081 rows name an image again, first 'deepai_0_0_0_0.jpg' \\(row 2, row 1082\\)"
    ):
        Agiqa1k(annotations=str(tmp_path / "more.xlsx"), images="x").load()


def test_targets_chosen_and_ordered(table_3k: str) -> None:
    both = Agiqa3k(annotations=table_3k, images="x").load()
    assert both.groups == ("012", "003") and both.prompts[1] == "NA"
    swapped = Agiqa3k(annotations=table_3k, images="x", targets=["alignment", "quality"]).load()
    assert swapped.target_names == ("alignment", "quality")
    np.testing.assert_array_equal(swapped.scores, both.scores[:, ::-1])
    one = Agiqa3k(annotations=table_3k, images="x", targets=["alignment"]).load()
    np.testing.assert_array_equal(one.scores, [[2.0], [4.0]])


def test_own_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("file,text,scene,beauty,fit\na.png,a cat,s1,70,80\nb.png,a cat,s2,-30,40\nc.png,a dog,s2,1,2\n")
    given: dict[str, Any] = {"annotations": str(path), "images": "x", "image": "file", "prompt": "text"}
    table = OwnTable(**given, targets=["fit", "beauty"], group="scene").load()
    assert (table.target_names, table.groups, table.reference_draw) == (("fit", "beauty"), ("s1", "s2", "s2"), None)
    assert OwnTable(**given, targets=["fit"]).load().groups == ("a cat", "a cat", "a dog")
    with pytest.raises(DataError, match="1 of 3 rows have no finite score 'beauty' from 0 to inf, first '-30'"):
        OwnTable(**given, targets=["beauty"], mos_min=0).load()
    with pytest.raises(ConfigError, match="split.kind: 'reference' is defined for AGIQA-1k and AGIQA-3k only"):
        make_split(table, kind="reference", seed=42, fold=0, num_folds=1)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown target": (
        Agiqa3k,
        {"targets": ["qualty"]},
        "dataset.targets: no target is called 'qualty'. Did you mean 'quality'? There are: quality, alignment.",
    ),
    "no target": (Agiqa3k, {"targets": []}, "dataset.targets: [] is empty or names a target twice."),
    "no own target": (OwnTable, {"targets": []}, "dataset.targets: [] is empty or names a target twice."),
    "target twice": (Agiqa3k, {"targets": ["quality", "quality"]}, "names a target twice. Name each target once."),
    "range": (
        OwnTable,
        {"targets": ["q"], "mos_min": 5, "mos_max": 1},
        "dataset.mos_min: 5 to dataset.mos_max 1 is",
    ),
    "nan": (OwnTable, {"targets": ["q"], "mos_min": float("nan")}, "dataset.mos_min: nan to dataset.mos_max None is"),
    "inf": (OwnTable, {"targets": ["q"], "mos_max": float("inf")}, "dataset.mos_min: None to dataset.mos_max inf is"),
    "cache": (Agiqa3k, {"cache_limit_gb": float("nan")}, "dataset.cache_limit_gb: nan is not a size. Give one such as"),
    "own column": (
        OwnTable,
        {"targets": ["mos_aling"], "image": "name"},
        "has no column 'mos_aling'. Did you mean 'mos_align'?",
    ),
    "own group": (OwnTable, {"targets": ["mos_align"], "image": "name", "group": "scene"}, "has no column 'scene'."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_refused(table_3k: str, case: str) -> None:
    dataset, settings, expected = REFUSED[case]
    with pytest.raises(IpiqaError) as caught:  # of a setting alone, before any file is looked for
        dataset(annotations=table_3k, images="x", **settings).load()
    assert expected in str(caught.value)


@pytest.mark.parametrize(("dataset", "database"), [(Agiqa1k, "AGIQA-1k"), (Agiqa3k, "AGIQA-3k")])
def test_missing_files_say_where_to_get_them(tmp_path: Path, table_3k: str, dataset: Any, database: str) -> None:
    source = f"Get {database} from https://github.com/lcysyzxdxc/{database}-Database; cache/README.md shows"
    with pytest.raises(DataError, match=f"^dataset.annotations: '.*none.csv' does not exist. {source}"):
        dataset(annotations=str(tmp_path / "none.csv"), images="x").load()
    table = Agiqa3k(annotations=table_3k, images=str(tmp_path / "none")).load()
    with pytest.raises(DataError, match=f"^dataset.images: the folder '.*none' does not exist. {source}"):
        dataset(annotations=table_3k, images="x").check_images(table, SquashProcessor(32))


@pytest.mark.parametrize("name", ["cat.jpg", "sd_normal_.jpg", "sd_normal_1b.jpg", "sd_normal_٣.jpg", "deepai_1.jpg"])
def test_name_without_a_group(name: str) -> None:
    with pytest.raises(DataError, match=f"^dataset.annotations: '{name}' tells no group. Names of the database have"):
        (agiqa_1k_group if name.startswith("deepai") else agiqa_3k_group)(name)


def test_groups_of_names() -> None:
    assert agiqa_3k_group("sd1.5_highcorr_012.jpg") == agiqa_3k_group("012.jpg") == "012"
    assert agiqa_1k_group("dreamStudio_5_0_0_0.jpg") == agiqa_1k_group("deepai_5_5_1_0.jpg") == "5_5"
    assert agiqa_1k_group("dreamStudio_6_0_0_0.jpg") == "7_5"
    assert agiqa_1k_group("folder/deepai_0_14_0_0.jpg") == "0_14"
    assert agiqa_1k_group("folder/dreamStudio_8_9_1_1.jpg") == "9_14"
