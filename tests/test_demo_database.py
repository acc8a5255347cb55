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

from ipiqa import registry
from ipiqa.build import make_dataset
from ipiqa.cli import main
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets.image_folder import TablePairs
from ipiqa.demo import database as demo
from ipiqa.demo import encoders
from ipiqa.demo.encoders import WarmUp, matching_loss, warm_up
from ipiqa.demo.scenes import (
    DISTORTIONS,
    Scene,
    Thing,
    alignment,
    distort,
    draw_scene,
    look,
    near_miss,
    render,
    with_errors,
)
from ipiqa.errors import ConfigError

SCENE = Scene(Thing("two", "red", "circle"), Thing("one", "blue", "square"), "above", "plain")


def dataset_config(folder: Path, *overrides: str) -> Config:
    return load_config(
        REPOSITORY / "ipiqa/projects/demo/ipiqa.yaml", f"dataset.annotations={folder}/data.csv",
        f"dataset.images={folder}/images", f"model.image_encoder.weights={folder}/encoders.safetensors",
        f"dataset.cache_dir={folder}/decoded", f"run.output_dir={folder}/output", *overrides,
    )  # fmt: skip


def test_the_same_seed_writes_the_same_bytes_however_many_processes(tmp_path: Path) -> None:
    for name, processes in (("a", 1), ("b", 2)):
        demo.write_demo_dataset(tmp_path / name, seed=3, num_prompts=4, image_size=32, processes=processes)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4 * 10 + 2
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    demo.write_demo_dataset(tmp_path / "c", seed=4, num_prompts=4, image_size=32)
    assert (tmp_path / "c" / "data.csv").read_bytes() != (tmp_path / "a" / "data.csv").read_bytes()


def test_it_is_read_as_agiqa_3k_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    summary = demo.write_demo_dataset(tmp_path, num_prompts=30, image_size=32)
    table = make_dataset(dataset_config(tmp_path)).load()
    assert len(table) == 300 and len(set(table.groups)) == 30 and table.target_names == ("quality", "alignment")
    assert "synthetic" in (tmp_path / "README.txt").read_text() and "synthetic" in str(summary)
    for target, (srcc, plcc) in summary.ceilings.items():
        assert 0.9 < srcc < 1 and 0.9 < plcc < 1 and f"{srcc:.3f}" in str(summary), target
    assert abs(summary.crosstalk) < 0.2


def test_more_skill_means_more_of_the_prompt_and_distortion_means_less_quality(tmp_path: Path) -> None:
    demo.write_demo_dataset(tmp_path, num_prompts=40, image_size=32)
    with (tmp_path / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = {}
    for generator in demo.GENERATORS:
        own = [r for r in rows if r["name"].startswith(generator + "_")]
        means[generator] = [np.mean([float(r[c]) for r in own]) for c in ("mos_quality", "mos_align")]
    found = np.array(list(means.values()))
    settings = np.array(list(demo.GENERATORS.values()))
    assert spearmanr(settings[:, 0], found[:, 1]).statistic < -0.95
    assert spearmanr(settings[:, 1], found[:, 0]).statistic < -0.95


def test_alignment_is_the_share_of_the_prompt_that_is_there() -> None:
    assert alignment(SCENE, SCENE) == pytest.approx(1)
    missing = dataclasses.replace(SCENE, second=None)
    assert alignment(SCENE, missing) == pytest.approx(1 - 0.3 - 0.15)  # its parts, and the relation
    for part, loss in (("colour", 0.15), ("shape", 0.1), ("count", 0.05)):
        other = {"colour": "green", "shape": "cross", "count": "three"}[part]
        changed = dataclasses.replace(SCENE, first=dataclasses.replace(SCENE.first, **{part: other}))
        assert alignment(SCENE, changed) == pytest.approx(1 - loss)
    rng = np.random.default_rng(0)
    never, always = with_errors(SCENE, 0.0, rng), with_errors(SCENE, 1.0, rng)
    assert never == SCENE and alignment(SCENE, always) == pytest.approx(0)


def test_a_near_miss_differs_in_one_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = draw_scene(rng)
        miss = near_miss(scene, rng)
        assert miss.prompt != scene.prompt and 0.7 < alignment(scene, miss) < 1


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


def test_pairs_show_their_prompts_and_exclude_those_asked(tmp_path: Path) -> None:
    pictures, _ = demo.draw_pairs(40, seed=0, image_size=32, exclude=[])
    prompts = [picture.scene.prompt for picture in pictures]
    assert pictures[0].pixels().shape == (3, 32, 32) and len(set(prompts)) > 35
    others, near_misses = demo.draw_pairs(40, seed=0, image_size=32, exclude=prompts[:5])
    assert not set(prompts[:5]) & {*near_misses, *(picture.scene.prompt for picture in others)}


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
    assert main(["demo-pairs", "--out", str(tmp_path / "nowhere")]) == 2
    assert "Make it with: ipiqa demo-data" in capsys.readouterr().err


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


def test_matching_loss_prefers_the_right_prompt_and_the_right_look() -> None:
    images, looks, scale = torch.eye(3, 8), torch.tensor([0, 1, 2]), torch.tensor(10.0)
    prompts, near_misses, descriptions = torch.eye(3, 8), torch.eye(8)[3:6], torch.eye(4, 8)

    def loss(*texts: torch.Tensor, looks: torch.Tensor = looks) -> float:
        return matching_loss(images, torch.cat(texts), looks, scale).item()

    right = loss(prompts, near_misses, descriptions)
    assert right < 0.01
    assert loss(prompts.roll(1, 0), near_misses, descriptions) > 1  # another image's prompt
    assert loss(prompts, prompts, descriptions) > right + 0.5  # near misses as near as the prompts
    assert loss(prompts, near_misses, descriptions, looks=looks + 1) > 1


def test_pairs_say_how_they_are_distorted() -> None:
    pictures, near_misses = demo.draw_pairs(60, seed=0, image_size=32, exclude=[])
    assert len({look(picture.kind, picture.strength) for picture in pictures}) > 10
    prompts = [*near_misses, *(picture.scene.prompt for picture in pictures)]
    assert not any(word in prompt for prompt in prompts for word in DISTORTIONS.values())


def test_warm_up_writes_encoders_that_load_and_is_not_repeated(tmp_path: Path) -> None:
    demo.write_demo_dataset(tmp_path, num_prompts=3, image_size=32)
    config = dataset_config(tmp_path, "image_size=32", "model.image_encoder.width=4", "model.prompt_encoder.width=16")
    settings = WarmUp(num_pairs=64, epochs=1, batch_size=32)
    path = warm_up(config, settings)
    written = path.stat().st_mtime_ns
    image = registry.build("image_encoder", config.model["image_encoder"], "model.image_encoder", {"image_size": 64})
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
    demo.write_demo_dataset(tmp_path, num_prompts=3, image_size=32)
    config = dataset_config(tmp_path, "image_size=32", "model.image_encoder.width=4", "model.prompt_encoder.width=16")
    settings = WarmUp(num_pairs=64, epochs=2, batch_size=32)
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


def test_encoders_must_share_one_file(tmp_path: Path) -> None:
    config = dataset_config(tmp_path, "model.prompt_encoder.weights=other.pt")
    with pytest.raises(ConfigError, match="must name the one file"):
        warm_up(config, WarmUp(num_pairs=64, epochs=1))
