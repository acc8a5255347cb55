"""What a checkpoint says of itself: specs, bundles, old checkpoints, targets by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.bundle import (
    CONFIG,
    WEIGHTS,
    ModelSpec,
    load_model,
    own_section,
    read_bundle,
    read_checkpoint,
    write_bundle,
)
from ipiqa.training.cross_validation import run

SECTION: dict[str, Any] = {
    "name": "ipiqa",
    "image_encoder": {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8},
    "prompt_encoder": {"name": "clip_text", "width": 8, "layers": 1, "heads": 1, "embed_dim": 8},
    "fusion": "cross_attention",
    "head": "mlp",
}


def spec_of(section: dict[str, Any], *names: str) -> ModelSpec:
    model = registry.resolve("model", section, "model")
    processor = registry.resolve("processor", {"name": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}, "processor")
    targets = tuple(Target(name, 0.0, 5.0) for name in names or ("quality", "alignment"))
    return ModelSpec(model=model, image_size=32, processor=processor, targets=targets)


SPEC = spec_of(SECTION)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def run_dir(cfg: Path) -> Path:
    return run(load_config(cfg, "run.num_folds=1"))


def test_a_spec_survives_json_and_rebuilds_its_model(tmp_path: Path) -> None:
    again = ModelSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())), "x")
    assert again == SPEC and again.differences(SPEC) == []
    model = SPEC.build()
    write_bundle(tmp_path / "bundle", model, SPEC)
    spec, tensors = read_bundle(tmp_path / "bundle", "x")
    assert spec == SPEC and all(torch.equal(tensors[n], value) for n, value in model.state_dict().items())
    (tmp_path / "bundle" / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"model.safetensors' does not exist. Copy the whole folder"):
        read_bundle(tmp_path / "bundle", "x")
    (tmp_path / "bundle" / CONFIG).write_text("[" * 100_000)
    with pytest.raises(DataError, match="cannot be read"):
        read_bundle(tmp_path / "bundle", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": None}, "image_size: None is not a whole number"),
        ({"image_size": True}, "image_size: True is not"),
        ({"image_size": 10**9}, "out of range"),
        ({"targets": [{"name": "q"}, {"name": "q"}]}, "named twice"),
        ({"targets": [{"name": "q", "low": "zero"}]}, "targets.low: 'zero' is not a number or null"),
        ({"targets": "quality"}, "targets: 'quality' is not a list"),
        ({"model": {"name": "ipiqq"}}, "no model is called 'ipiqq'"),
        ({"training": {"fold": 1.5}}, "training.fold: 1.5 is not"),
        ({"colour": 1}, "spec.colour: no such setting"),
        ({"format": 99}, "newer than this version"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ModelSpec.from_dict(SPEC.to_dict() | change, "config.json")
    assert str(caught.value).startswith("config.json") and str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(ModelSpec)]), JSON), JSON)
def test_any_json_gives_a_spec_or_a_data_error(change: dict[str, Any], instead: Any) -> None:
    for content in (SPEC.to_dict() | change, instead, SPEC.to_dict() | {"model": {**SECTION, "head": instead}}):
        try:
            ModelSpec.from_dict(content, "x")
        except DataError:
            continue


def test_specs_are_compared_field_by_field_but_for_how_they_train() -> None:
    other = spec_of(
        SECTION | {"head": {"name": "mlp", "dropout": 0.1}, "fusion": {"name": "cross_attention", "heads": 4}}
    )
    assert SPEC.differences(other) == ["model.fusion.heads is None, not 4"]
    larger = dataclasses.replace(SPEC, image_size=64)
    assert SPEC.differences(larger) == ["image_size is 32, not 64"]
    with pytest.raises(ConfigError, match="make no tower"):
        spec_of(SECTION | {"image_encoder": SECTION["image_encoder"] | {"width": 10**6}}).build()


def test_a_tower_read_from_a_file_says_its_own_sizes(tiny_rn50: Path) -> None:
    clip = {"name": "clip", "weights": str(tiny_rn50)}
    section = SECTION | {"image_encoder": clip, "prompt_encoder": clip | {"qa_token": "suffix"}}
    context = {"image_size": 64, "num_targets": 2}
    resolved = registry.resolve("model", section, "model")
    model = registry.build("model", resolved, "model", context)
    own = own_section(model, resolved)
    assert str(tiny_rn50) not in json.dumps(own) and own["prompt_encoder"]["qa_token"] == "suffix"
    again = registry.build("model", registry.resolve("model", own, "model"), "model", context)
    again.load_state_dict(model.state_dict())
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_a_checkpoint_of_training_describes_itself(run_dir: Path) -> None:
    spec = read_checkpoint(run_dir / "fold_00" / "best.pt", "x").spec
    assert spec is not None and spec.target_names == ("quality", "alignment")
    split = json.loads((run_dir / "fold_00" / "split.json").read_text())
    assert len(spec.training.images) == len(split["train"]) and spec.training.split_sha256 == split["sha256"]
    assert spec.training.epoch in (1, 2) and spec.training.fold == 0 and spec.training.dataset == "agiqa_3k"
    assert read_checkpoint(run_dir / "fold_00" / "last.pt", "x").spec is not None


def test_a_checkpoint_of_the_reference_code_does_not_name_its_targets(tmp_path: Path) -> None:
    tensors = {"resnet50.conv1.weight": torch.ones(1), "head.out_proj.bias": torch.ones(2), "txt_pos": torch.ones(1)}
    torch.save({"model": tensors}, tmp_path / "checkpoint.pth")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth", "x")
    assert checkpoint.spec is None and "image_encoder.tower.conv1.weight" in checkpoint.tensors
    with pytest.raises(DataError, match="does not say which model it belongs to"):
        ipiqa.load(tmp_path / "checkpoint.pth")


# --- targets by name -------------------------------------------------------------------------------------------------


def measured(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "fold_00" / "scores.json").read_text())


@pytest.mark.parametrize("targets", [["alignment", "quality"], ["alignment"]])
def test_the_columns_of_an_evaluated_checkpoint_are_found_by_name(
    targets: list[str], cfg: Path, run_dir: Path, tmp_path: Path
) -> None:
    changes = ["run.evaluate=true", f"run.checkpoint={run_dir}", f"dataset.targets={targets}", "run.num_folds=1"]
    found = measured(run(load_config(cfg, *changes, f"run.output_dir={tmp_path}/again")))
    wanted = measured(run_dir)["best"]["metrics"]
    for target in targets:
        for metric in ("srcc", "plcc", "rmse"):
            assert found["best"]["metrics"][target][metric] == pytest.approx(wanted[target][metric], rel=1e-4)
    assert found["seen_in_training"] == 0


def test_a_target_that_a_checkpoint_has_not_learned_is_refused(run_dir: Path, cfg: Path, tmp_path: Path) -> None:
    one = run(load_config(cfg, "dataset.targets=[quality]", "run.num_folds=1", f"run.output_dir={tmp_path}/one"))
    changes = [f"run.checkpoint={one}/fold_00/best.pt", f"run.output_dir={tmp_path}/two"]
    with pytest.raises(DataError, match=r"predicts quality, not alignment. .* with dataset.targets."):
        run(load_config(cfg, *changes))
    with pytest.raises(DataError, match=r"belongs to another model: model.head.name is 'linear', not 'mlp'"):
        run(load_config(cfg, *changes, "dataset.targets=[quality]", "model.head=linear"))


def test_training_begins_with_the_outputs_of_the_same_targets(run_dir: Path) -> None:
    path, swapped = run_dir / "fold_00" / "best.pt", spec_of(SECTION, "alignment", "quality")
    model = swapped.build()
    spec = read_checkpoint(path, "x").spec
    assert spec is not None
    load_model(model, path, "x", dataclasses.replace(swapped, model=spec.model))
    trained = torch.load(path, weights_only=True)["model"]
    for name in ("head.out_proj.weight", "head.out_proj.bias"):
        assert torch.equal(model.state_dict()[name], trained[name].flip(0))


def test_outputs_that_are_not_one_per_target_are_refused(tmp_path: Path) -> None:
    model, one = SPEC.build(), {"head.out_proj.bias": torch.zeros(())}
    torch.save({"model": model.state_dict() | one, "spec": SPEC.to_dict()}, tmp_path / "damaged.pt")
    torch.save({"model": model.state_dict() | one}, tmp_path / "unnamed.pt")
    with pytest.raises(DataError, match=r"another shape, first 'head.out_proj.bias' with \(\) instead of \(1,\)"):
        load_model(spec_of(SECTION, "alignment").build(), tmp_path / "damaged.pt", "x", spec_of(SECTION, "alignment"))
    with pytest.raises(DataError, match="predicts 1 targets, the dataset has 2"):
        load_model(model, tmp_path / "unnamed.pt", "x")


def test_held_out_images_that_a_checkpoint_was_trained_on_are_counted(
    cfg: Path, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = ["run.evaluate=true", f"run.checkpoint={run_dir}/fold_00/best.pt", "split.seed=5", "run.num_folds=1"]
    again = run(load_config(cfg, *changes, f"run.output_dir={tmp_path}/again"))
    before, now = (json.loads((folder / "fold_00" / "split.json").read_text()) for folder in (run_dir, again))
    expected = len(set(before["train"]) & set(now["val"]))
    assert expected > 0 and measured(again)["seen_in_training"] == expected
    assert f"was trained on {expected} of the {len(now['val'])} held-out images" in caplog.text


def test_a_bundle_is_a_checkpoint(run_dir: Path, cfg: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(run_dir / "fold_00" / "best.pt", "x")
    assert checkpoint.spec is not None
    model = checkpoint.spec.build()
    model.load_state_dict(checkpoint.tensors)
    write_bundle(tmp_path / "bundle", model, checkpoint.spec)
    changes = ["run.evaluate=true", f"run.checkpoint={tmp_path}/bundle", "run.num_folds=1"]
    found = measured(run(load_config(cfg, *changes, f"run.output_dir={tmp_path}/again")))["best"]["metrics"]
    assert found["quality"]["srcc"] == pytest.approx(measured(run_dir)["best"]["metrics"]["quality"]["srcc"])


def test_build_model_wants_one_fold(run_dir: Path, cfg: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a run of 1 folds. Name one, such as .*fold_00/best.pt; ipiqa.load"):
        ipiqa.build_model(cfg, f"run.checkpoint={run_dir}")
    assert np.isfinite(ipiqa.load(run_dir)(torch.zeros(3, 40, 50), "a")).all()
