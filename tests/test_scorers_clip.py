"""Zero-shot scorers by name: CLIPScore and CLIP-IQA are what their formulas say of the towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ipiqa
from ipiqa.errors import IpiqaError
from ipiqa.models.ipiqa import Image2Prompt
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD
from ipiqa.registry import build, resolve
from ipiqa.scoring.loading import model_sha256

IMAGES = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red tree", "two cats", "a house " * 60]


@pytest.fixture(scope="module")
def towers(tiny_rn50: Path) -> Image2Prompt:
    """CLIP itself, built from its own file without the scorers."""
    tower = {"name": "clip", "weights": str(tiny_rn50), "freeze": "all"}
    section = resolve("model", {"name": "image2prompt", "image_encoder": tower, "prompt_encoder": tower}, "model")
    model: Image2Prompt = build("model", section, "model", {"image_size": 224}).eval()
    return model


def features(towers: Image2Prompt, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        images = towers.image_encoder((IMAGES / 255 - mean) / std)[1]
        both = [x / x.norm(dim=1, keepdim=True) for x in (images, towers.prompt_encoder(prompts))]
    return both[0].numpy(), both[1].numpy()


def test_clipscore_is_two_and_a_half_cosines(towers: Image2Prompt, tiny_rn50: Path) -> None:
    scorer = ipiqa.load(f"clipscore architecture=auto weights={tiny_rn50}")
    image, prompt = features(towers, PROMPTS)
    np.testing.assert_allclose(scorer(IMAGES, PROMPTS)[:, 0], 2.5 * (image * prompt).sum(axis=1), atol=1e-5)
    assert scorer.needs_prompt and [(t.name, t.low, t.high) for t in scorer.targets] == [("alignment", 0, 2.5)]


def test_clip_iqa_is_the_probability_of_the_better_word(towers: Image2Prompt, tiny_rn50: Path) -> None:
    scorer = ipiqa.load(f"clip_iqa architecture=auto weights={tiny_rn50}")
    image, words = features(towers, ["Good photo.", "Bad photo."])
    good, bad = np.exp(100 * image @ words.T).T
    np.testing.assert_allclose(scorer(IMAGES)[:, 0], good / (good + bad), atol=1e-4)
    assert not scorer.needs_prompt and [t.name for t in scorer.targets] == ["quality"]


def test_a_tower_of_the_wrong_size_is_refused_under_the_scorers_name(tiny_rn50: Path) -> None:
    with pytest.raises(
        IpiqaError, match=r"^ipiqa.load: clipscore: model.image_encoder.weights: '.*tensors are missing"
    ):
        ipiqa.load(f"clipscore weights={tiny_rn50} architecture=RN50-quickgelu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipscor", "'clipscor' does not exist. Did you mean 'clipscore'? Give a checkpoint, bundle"),
        ("clipscore weigths=x.pt", "clipscore: settings.weigths: no such setting. Did you mean 'weights'?"),
        ("clipscore x.pt", "clipscore: 'x.pt': not a setting"),
        ("clipscore architecture=ViT-B-33", "open_clip knows no 'ViT-B-33'. Did you mean"),
        ("clipscore architecture=hf-hub:owner/model", "open_clip knows no 'hf-hub:owner/model'"),
    ],
)
def test_a_misspelt_scorer_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(IpiqaError) as caught:
        ipiqa.load(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folds_are_for_runs(tiny_rn50: Path) -> None:
    with pytest.raises(IpiqaError, match=r"folds: 'clipscore weights=.*' is not a run folder"):
        ipiqa.load(f"clipscore weights={tiny_rn50}", folds=[0])


def test_a_job_goes_on_only_with_the_same_weights(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt", "model.onnx", "some scores.csv"):
        (tmp_path / name).write_bytes(b"0")
    names = [f"clipscore weights={tmp_path}/a.pt", f"clipscore weights={tmp_path}/b.pt", f"{tmp_path}/model.onnx"]
    names.append(f"table scores={tmp_path}/some scores.csv column=a")
    before = [model_sha256(name) for name in names]
    assert len({*before, model_sha256("clip_iqa"), model_sha256("clipscore")}) == 6
    for name in ("a.pt", "model.onnx.data", "some scores.csv"):
        (tmp_path / name).write_bytes(b"1")
    after = [model_sha256(name) for name in names]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False, False]
