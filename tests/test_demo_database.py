"""The demo dataset and the warm-up of its encoders, small."""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from scipy.stats import spearmanr

import ipiqa.export
from ipiqa import registry
from ipiqa.build import make_dataset
from ipiqa.cli import main
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets.databases.published import Agiqa3k
from ipiqa.datasets.image_folder import TablePairs
from ipiqa.demo import database as demo
from ipiqa.demo import encoders
from ipiqa.demo.encoders import WarmUp, matching_loss, warm_up
from ipiqa.demo.scenes import DISTORTIONS, Scene, Thing, distort, draw_scene, near_miss, render, satisfied, with_errors
from ipiqa.errors import ConfigError

SCENE = Scene(Thing("two", "red", "circle"), Thing("one", "blue", "square"), "above", "plain")


def dataset_config(folder: Path, *overrides: str) -> Config:
    return load_config(
        REPOSITORY / "ipiqa/projects/demo/ipiqa.yaml", f"dataset.annotations={folder}/data.csv",
        f"dataset.images={folder}/images", f"model.prompt_encoder.weights={folder}/encoders.safetensors",
        f"dataset.cache_dir={folder}/decoded", f"run.output_dir={folder}/output", *overrides,
    )  # fmt: skip


def test_the_same_seed_writes_the_same_bytes_however_many_processes(tmp_path: Path) -> None:
    for name, processes in (("a", 1), ("b", 2)):
        demo.write_demo_dataset(tmp_path / name, seed=3, num_prompts=4, image_size=32, processes=processes)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4 * 4 + 2
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    demo.write_demo_dataset(tmp_path / "c", seed=4, num_prompts=4, image_size=32)
    assert (tmp_path / "c" / "data.csv").read_bytes() != (tmp_path / "a" / "data.csv").read_bytes()


def test_it_is_read_as_agiqa_3k_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    summary = demo.write_demo_dataset(tmp_path, num_prompts=30, image_size=32)
    table = make_dataset(dataset_config(tmp_path)).load()
    assert len(table) == 120 and len(set(table.groups)) == 30 and table.target_names == ("quality", "alignment")
    assert "synthetic" in (tmp_path / "README.txt").read_text() and "synthetic" in str(summary)
    for target, (srcc, plcc) in summary.ceilings.items():
        assert 0.9 < srcc < 1 and 0.9 < plcc < 1 and f"{srcc:.3f}" in str(summary), target


def test_generators_differ_in_quality_and_misread_prompts_alike() -> None:
    drawings = demo.draw_table(seed=0, num_prompts=600, image_size=32)
    found = np.array([satisfied(drawing.asked, drawing.picture.scene) for drawing in drawings])
    quality, alignment = np.array([drawing.truth for drawing in drawings]).T
    assert 0.3 < spearmanr(quality, alignment).statistic < 0.5
    names = np.array([drawing.name.partition("_")[0] for drawing in drawings])
    order = list(demo.GENERATORS)
    of_each = {name: (quality[names == name].mean(), found[names == name].mean()) for name in order}
    assert sorted(order, key=demo.GENERATORS.__getitem__) == sorted(order, key=lambda name: -of_each[name][0])
    assert np.ptp([share for _, share in of_each.values()]) < 0.05  # four standard errors


def test_no_scene_of_the_table_is_one_the_encoders_have_seen() -> None:
    drawings = demo.draw_table(seed=0, num_prompts=300, image_size=32)
    of_table = {scene.prompt for drawing in drawings for scene in (drawing.asked, drawing.picture.scene)}
    pictures, near_misses = demo.draw_pairs(4000, seed=0, image_size=32)
    assert not of_table & {*near_misses, *(picture.scene.prompt for picture in pictures)}
    assert len(of_table) > 1000 and len({picture.scene for picture in pictures}) > 2000


def test_alignment_is_the_share_of_statements_that_are_true() -> None:
    assert satisfied(SCENE, SCENE) == 1
    for part, other in (("colour", "green"), ("shape", "cross"), ("count", "one")):
        changed = dataclasses.replace(SCENE, first=dataclasses.replace(SCENE.first, **{part: other}))
        assert satisfied(SCENE, changed) == pytest.approx(7 / 8)
    rng = np.random.default_rng(0)
    asked = draw_scene(rng, of_table=True)
    assert with_errors(asked, 0.0, rng) == asked and satisfied(asked, with_errors(asked, 1.0, rng)) == 0
    picture = demo.Picture(asked, 32, (0,), "blur", 0.5)
    assert demo.Drawing("a.jpg", asked, picture).truth == pytest.approx((2.5, 5 * (0.65 + 0.35 / 2)))


def test_a_near_miss_differs_in_one_statement() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = draw_scene(rng, of_table=False)
        assert satisfied(scene, near_miss(scene, rng)) == pytest.approx(7 / 8)


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_distortions_grow_with_their_strength(kind: str) -> None:
    def difference(strength: float) -> float:
        clean = render(SCENE, 64, np.random.default_rng(0))
        changed = distort(clean, kind, strength, np.random.default_rng(1))
        assert isinstance(changed, Image.Image) and changed.mode == "RGB"
        return float(np.abs(np.asarray(clean, float) - np.asarray(changed, float)).mean())

    found = [difference(s) for s in (0.2, 0.5, 0.8)]
    assert found[0] < found[1] < found[2]
    if kind != "jpeg":
        assert difference(0.0) < 0.6


def test_pairs_are_undistorted_and_those_of_the_encoders_from_another_world() -> None:
    (positive, *_), _ = demo.draw_pairs(3, seed=0, image_size=32)
    (negative, *_), _ = demo.draw_pairs(3, seed=0, image_size=32, negative=True)
    assert positive.strength == negative.strength == 0 and positive.scene == negative.scene
    assert positive.pixels().shape == (3, 32, 32) and not np.array_equal(positive.pixels(), negative.pixels())


def test_pairs_on_disk_leave_out_the_prompts_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--out", str(tmp_path), "--image-size", "32"]
    assert main(["demo-data", *small, "--num-prompts", "4"]) == 0
    assert main(["demo-pairs", *small, "--num", "6"]) == 0
    assert "6 pairs" in capsys.readouterr().out
    table = TablePairs(annotations=str(tmp_path / "pairs.csv"), images=str(tmp_path / "pairs")).load()
    with (tmp_path / "data.csv").open(newline="") as file:
        scored = {row["prompt"] for row in csv.DictReader(file)}
    assert len(table) == 6 and not scored & set(table.prompts)
    with Image.open(table.image_paths[5]) as image:
        assert image.size == (32, 32)


@pytest.mark.parametrize("command", ["demo-data", "demo-pairs"])
@pytest.mark.parametrize("name", ["data.csv", "README.txt"])
def test_another_dataset_is_not_overwritten(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("name,prompt\nmine.png,a cat\n")
    assert main([command, "--out", str(tmp_path)]) == 2
    message = f"ipiqa: --out: '{tmp_path}' holds a {name} that `ipiqa demo-data` has not made. Give another folder.\n"
    assert capsys.readouterr().err == message
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_matching_loss_prefers_the_right_prompt_to_others_and_to_near_misses() -> None:
    images, prompts, near_misses, scale = torch.eye(3, 8), torch.eye(3, 8), torch.eye(8)[3:6], torch.tensor(10.0)

    def loss(*texts: torch.Tensor) -> float:
        return matching_loss(images, torch.cat(texts), scale).item()

    right = loss(prompts, near_misses)
    assert right < 0.01
    assert loss(prompts.roll(1, 0), near_misses) > 1  # another image's prompt
    assert loss(prompts, prompts) > right + 0.5  # near misses as near as the prompts


def test_warm_up_writes_encoders_that_load_and_is_not_repeated(tmp_path: Path) -> None:
    config = dataset_config(tmp_path, "model.image_encoder.width=4", "model.prompt_encoder.width=16")
    settings = WarmUp(num_pairs=64, epochs=1, batch_size=32, image_size=32)
    path = warm_up(config, settings)
    written = path.stat().st_mtime_ns
    section = config.model["image_encoder"] | {"weights": str(path)}
    image = registry.build("image_encoder", section, "model.image_encoder", {"image_size": 64})
    text = registry.build("prompt_encoder", config.model["prompt_encoder"], "model.prompt_encoder", {})
    assert image.grid == (2, 2)  # positions are resized from one token
    assert text(["two red circles"]).shape == (1, 64)
    assert warm_up(config, settings) == path and path.stat().st_mtime_ns == written
    first = path.read_bytes()
    warm_up(config, dataclasses.replace(settings, seed=1))
    assert path.read_bytes() != first
    warm_up(config, settings)
    assert path.read_bytes() == first  # the same settings give the same bits
    path.write_bytes(b"something of mine")
    with pytest.raises(ConfigError, match="not made by the warm-up"):
        warm_up(config, settings)


def test_an_interrupted_warm_up_leaves_no_file_and_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataset_config(tmp_path, "model.image_encoder.width=4", "model.prompt_encoder.width=16")
    settings = WarmUp(num_pairs=64, epochs=2, batch_size=32, image_size=32)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))

    def interrupt(*arguments: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoders, "matching_loss", interrupt)
        warm_up(config, settings)
    assert sorted(tmp_path.rglob("*")) == before
    assert warm_up(config, settings).is_file()


@pytest.mark.parametrize(("flag", "value"), [("--num-pairs", "255"), ("--epochs", "0")])
def test_a_warm_up_of_nothing_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-encoders", "--cfg-path", "ipiqa/projects/demo/ipiqa.yaml", flag, value]) == 2
    assert f"ipiqa: {flag}: '{value}' is out of range." in capsys.readouterr().err


def test_encoders_need_a_file_to_be_written_to(tmp_path: Path) -> None:
    config = dataset_config(tmp_path, "model.prompt_encoder.weights=null")
    with pytest.raises(ConfigError, match=r"model\.prompt_encoder\.weights: null\. Name the file"):
        warm_up(config, WarmUp(num_pairs=64, epochs=1))


def test_model_cards_know_the_table_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the card of a model of the demo would not say that its data is synthetic."""
    monkeypatch.setattr("ipiqa.demo.database.render_all", lambda *arguments, **settings: None)
    demo.write_demo_dataset(tmp_path)
    table = Agiqa3k(annotations=str(tmp_path / "data.csv"), images="x").load()
    card = Path(ipiqa.export.__file__).with_name("templates") / "card.md.j2"
    assert table.sha256 in card.read_text(encoding="utf-8")
