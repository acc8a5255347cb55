"""The model that asks CLIP for levels in words: its texts, its scores, zero-shot, trained, rebuilt, refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, refused
from small_models import NASTY, PROMPT, RESNET, TEXT, add_architectures, noise
from test_models_towers import ARCHITECTURES
from torch.nn import functional
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.build import make_model, make_processor
from ipiqa.config.loading import load_config
from ipiqa.datasets.table import Target
from ipiqa.models.bundle import ModelSpec, own_section, write_bundle
from ipiqa.models.levels import LEVELS, TEMPLATES
from ipiqa.processors.views import over_views
from ipiqa.prompts import CONTEXT_LENGTH, tokenize
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.training.cross_validation import run

TARGETS = (Target("quality", 1.0, 5.0), Target("alignment", 0.0, 100.0))
PROMPTS = ["a red circle", "two blue squares above a tree, oil painting", NASTY[2]]
LONG_WORD = "pneumonoultramicroscopicsilicovolcanoconiosis " * 10


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    text = {"text_cfg": ARCHITECTURES["tiny-vit-quickgelu"]["text_cfg"]}
    known = {f"{name}-levels": ARCHITECTURES[name] | text for name in ("tiny-vit-quickgelu", "tiny-vit")}
    add_architectures(tmp_path_factory.mktemp("architectures"), known)


def build(targets: tuple[Target, ...] = TARGETS, size: int = 64, **settings: Any) -> tuple[Any, ModelSpec]:
    torch.manual_seed(0)
    section = {"name": "clip_levels", "image_encoder": RESNET, "prompt_encoder": TEXT} | settings
    section = registry.resolve("model", section, "model")
    context = {"image_size": size, "num_targets": len(targets), "targets": targets}
    model = registry.build("model", section, "model", context).eval()
    processor = registry.resolve("processor", "squash", "processor")
    own = own_section(model, section)
    return model, ModelSpec(model=own, image_size=size, processor=processor, targets=targets)


def written(prompt: str) -> list[str]:
    """Returns the ten texts with a prompt in them, its tokens away from those of the template."""
    texts = [TEMPLATES[target].replace("{level}", level) for target in LEVELS for level in LEVELS[target]]
    return [text.replace("{prompt}", f" {prompt} ") for text in texts]


@pytest.mark.parametrize("prompt", [*PROMPTS[:2], "", "'red' cat's tail"])
def test_a_prompt_is_read_within_each_template(prompt: str) -> None:
    assert torch.equal(build()[0].prompt_encoder.texts(tokenize([prompt]))[0], tokenize(written(prompt)))


@pytest.mark.parametrize(("qa_token", "free"), [("none", 77), ("prefix", 76)])
@pytest.mark.parametrize("prompt", [NASTY[2], LONG_WORD])
def test_of_a_long_prompt_the_last_words_are_cut_and_no_word_of_a_template(
    qa_token: str, free: int, prompt: str
) -> None:
    model, _ = build(prompt_encoder={**TEXT, "qa_token": qa_token})
    texts = model.prompt_encoder.texts(tokenize([prompt]))[0]
    for text, whole in zip(texts, written("")[:10], strict=True):
        template = [token for token in tokenize([whole])[0].tolist() if token]
        before = template.index(int(tokenize(["'"])[0, 1])) + 1
        number = free - len(template)
        assert text.argmax() == free - 1 and not text[free:].any()
        assert text[:before].tolist() == template[:before]
        assert text[before : before + number].tolist() == tokenize([prompt])[0, 1 : 1 + number].tolist()
        assert text[before + number : free].tolist() == template[before:]
    assert model(torch.randn(1, 3, 64, 64), [prompt]).isfinite().all() and CONTEXT_LENGTH == 77


def test_tokens_may_be_cut_behind_the_longest_prompt() -> None:
    encoder, tokens = build()[0].prompt_encoder, tokenize(PROMPTS[:2])
    assert torch.equal(encoder.texts(tokens[:, :14]), encoder.texts(tokens))


def expected(model: Any, images: torch.Tensor, prompt: str) -> list[list[float]]:
    """Scores of one prompt by the formula: text by text, level by level."""
    image, encoder = model.image_encoder(images)[1], model.prompt_encoder.encoder
    cosines = functional.normalize(image) @ functional.normalize(encoder(written(prompt))).T
    scores = []
    for own, (low, high) in zip(cosines.split(5, dim=1), ((1, 5), (0, 100)), strict=True):
        weights = (own / 0.01).exp() / (own / 0.01).exp().sum(dim=1, keepdim=True)
        scores.append(sum(weights[:, i] * (low + (high - low) * i / 4) for i in range(5)))
    return torch.stack(scores, dim=1).tolist()


TOWERS = {"clip_resnet": (RESNET, TEXT)} | {
    name: ({"name": "clip", "architecture": name}, {"name": "clip", "architecture": name, "freeze": "all"})
    for name in ("tiny-vit-quickgelu-levels", "tiny-vit-levels")
}


@pytest.mark.parametrize("towers", TOWERS)
def test_a_score_is_the_mean_level_and_a_bundle_gives_it_again(towers: str, tmp_path: Path) -> None:
    image_encoder, prompt_encoder = TOWERS[towers]
    model, spec = build(image_encoder=image_encoder, prompt_encoder=prompt_encoder)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    seen = spec.build_processor().normalise(images)
    found = model(seen, PROMPTS[:2])
    assert found.dtype == torch.float32 and found[:, 0].min() >= 1 and found[:, 1].min() >= 0
    for row in range(2):
        np.testing.assert_allclose(
            found[row].detach(), expected(model, seen[row : row + 1], PROMPTS[row])[0], rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(model(seen[:1], PROMPTS[:2])[0], found[0])  # one image for all prompts
    write_bundle(tmp_path, model, spec)
    scorer = ipiqa.load(tmp_path, "cpu")
    np.testing.assert_allclose(scorer.score(images, PROMPTS[:2]), found.detach(), rtol=1e-4, atol=1e-4)
    assert scorer.needs_prompt and scorer.targets == TARGETS


def test_both_scores_of_the_zero_shot_scorer(tiny_rn50: Path) -> None:
    scorer = ipiqa.load(f"clip_levels architecture=auto weights={tiny_rn50}")
    assert isinstance(scorer, ModelScorer)
    assert [(t.name, t.low, t.high) for t in scorer.targets] == [("quality", 0, 1), ("alignment", 0, 1)]
    scores = scorer.score([noise(), noise()], [PROMPT, "a dog"])
    assert (scores > 0).all() and (scores < 1).all() and (scores[0] != scores[1]).all()


def test_templates_of_other_targets_are_given_and_need_no_prompt() -> None:
    settings = {"templates": {"realism": "a {level} photo"}, "levels": {"realism": ["fake", "real"]}}
    model, spec = build((Target("realism", -1.0, 1.0),), **settings)
    scorer = ModelScorer([model], [spec], device="cpu")
    assert not scorer.needs_prompt and scorer.score([noise()]).shape == (1, 1)
    assert torch.equal(model.prompt_encoder.texts(tokenize(["x"]))[0], tokenize(["a fake photo", "a real photo"]))


def test_it_scores_untrained_and_trains_through_a_run(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    levels = "model.levels={quality: [bad, good], alignment: [badly, well]}"
    changes = ["model.name=clip_levels", levels, "run.num_folds=1", "run.max_epochs=1", "run.learning_rate=0.01"]
    zero = run(load_config(cfg, *changes, "run.evaluate=true", f"run.output_dir={tmp_path}/zero"))
    trained = run(load_config(cfg, *changes))
    columns = []
    for folder in (zero, trained):
        with (folder / "fold_00" / "predictions.csv").open() as file:
            columns.append([float(row["best_quality"]) for row in csv.DictReader(file)])
    assert all(0 < score < 5 for column in columns for score in column) and columns[0] != columns[1]
    names = [target.name for target in ipiqa.load(trained / "fold_00").targets]
    assert names == ["quality", "alignment"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": (Target("appeal", 1, 5),)},
            "model: no templates or levels for the target 'appeal'. Give both, as model.templates={NAME:",
        ),
        (
            {"targets": (Target("appeal", 1, 5),), "templates": {"appeal": "{level}"}},
            "model: no templates or levels for the target 'appeal'.",
        ),
        ({"targets": (Target("quality"),)}, "model: the scale of the target 'quality' is not known"),
        ({"templates": {"quality": "a photo"}}, "model.templates.quality: 'a photo' lacks {level} or repeats."),
        ({"levels": {"quality": ["bad"]}}, "model.levels.quality: ['bad'] is no scale."),
        (
            {"templates": {"quality": "{level}" + " very" * 80}},
            "leaves no room for a prompt in the 77 tokens that are read",
        ),
        ({"temperature": 0.0}, "model.temperature: 0 is out of range."),
        (
            {"image_encoder": {**RESNET, "embed_dim": 4}},
            "model: image features have 4 numbers, prompt features 8. Take both encoders of one CLIP.",
        ),
    ],
)
def test_levels_that_make_no_scale_are_refused(settings: dict[str, Any], message: str) -> None:
    assert message in refused(lambda: build(**settings))


def test_tokens_that_are_not_clips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipiqa.prompts.tokenize", lambda texts: torch.tensor([[5, 1, 1]] * len(texts)))
    assert "the tokens of this prompt encoder are not CLIP's" in refused(build)


@pytest.mark.parametrize("name", ["vit_b32_levels", pytest.param("siglip2", marks=pytest.mark.slow), "views_224"])
def test_the_published_configs_build_models_that_score(name: str) -> None:
    changes = ["model.image_encoder.weights=null"]
    if name == "views_224":  # its sizes are those of a file
        changes += [f"model.{tower}_encoder.architecture=tiny-vit-quickgelu-levels" for tower in ("image", "prompt")]
    config = load_config(f"{REPOSITORY}/ipiqa/projects/agiqa3k/{name}.yaml", *changes)
    model, processor = make_model(config, 2).eval(), make_processor(config)
    images = processor.normalise(processor.decode(noise())[None])
    tokens = torch.ones(1, 64, dtype=torch.long) if name == "siglip2" else tokenize([PROMPT])  # its own is downloaded
    with torch.inference_mode():
        assert over_views(model, images, tokens).shape == (1, 2)
    assert processor.gives_views == (name != "siglip2") and model.reads_prompt
