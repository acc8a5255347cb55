"""ipiqa export FILE.onnx: the scores of PyTorch, from a graph that needs no PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import add_architectures

import ipiqa
from ipiqa import cli, registry
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.export import onnx as onnx_export
from ipiqa.export.onnx import export_onnx
from ipiqa.models.bundle import ModelSpec, Training, own_section, write_bundle
from ipiqa.scoring.scorer import Scorer

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install -e '.[export]'")

RESNET = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
TEXT = {"name": "clip_text", "width": 32, "layers": 1, "heads": 2, "embed_dim": 8, "freeze": "all"}
IPIQA: dict[str, Any] = {
    "name": "ipiqa", "image_encoder": RESNET, "prompt_encoder": TEXT, "fusion": "cross_attention", "head": "mlp",
}  # fmt: skip
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TARGETS = Target("quality", 0.0, 5.0, "how good"), Target("alignment", 0.0, 5.0)
PROMPTS = ["a red tree", "a blue house beside a river, oil painting, " * 4, "word " * 90]  # the last fills the context


@pytest.fixture(autouse=True, scope="module")
def tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    known = {"tiny-gelu": TINY, "tiny-quick": TINY | {"quick_gelu": True}}
    add_architectures(tmp_path_factory.mktemp("architectures"), known)


def write(folder: Path, section: dict[str, Any], *, seed: int = 0, size: int = 32) -> Path:
    """Writes a bundle with random weights; with another seed, only the prompt encoder stays the same."""
    section = registry.resolve("model", section, "model")
    torch.manual_seed(0)
    model = registry.build("model", section, "model", {"image_size": size, "num_targets": 2})
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.startswith("prompt_encoder."):
            parameter.data += 0.02 * torch.randn_like(parameter)
    for module in model.modules():  # without statistics of their own, layer after layer would lose what it is shown
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    tokens = model.prompt_encoder.tokenize(["a"] * 8) if "prompt_encoder" in section else None
    model.train()((images(8, size) / 255 - 0.45) / 0.25, tokens)
    facts = {"images": ["0" * 16], "dataset": "agiqa_3k", "quantiles": {"quality": [0.0, 1.0, 5.0]}}
    spec = ModelSpec(
        model=own_section(model, section), image_size=size, targets=TARGETS, training=Training(**facts),
        processor=registry.resolve("processor", {"name": "squash", "std": [0.2, 0.25, 0.3]}, "processor"),
    )  # fmt: skip
    write_bundle(folder, model, spec)
    return folder


def images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    colours = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(colours, size).to(torch.uint8)


def difference(one: Scorer, other: Scorer, size: int = 32) -> float:
    prompts = PROMPTS * 2 if one.needs_prompt else None
    return float(np.abs(one.score_folds(images(6, size), prompts) - other.score_folds(images(6, size), prompts)).max())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for fold in (0, 1):
        write(folder / f"fold_0{fold}", IPIQA, seed=fold)
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    path = run_dir.parent / "exported" / "model.onnx"
    assert cli.main(["export", str(run_dir), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def scorers(run_dir: Path, exported: Path) -> tuple[Scorer, Scorer]:
    return ipiqa.load(run_dir), ipiqa.load(exported)


def test_both_give_the_same_scores_by_each_fold(scorers: tuple[Scorer, Scorer], tmp_path: Path) -> None:
    plain, graph = scorers
    assert graph.targets == plain.targets and graph.image_size == 32 and graph.needs_prompt
    Image.fromarray(images(1)[0].permute(1, 2, 0).numpy()).resize((50, 70)).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", Image.open(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), *images(3)]
    prompts = [*PROMPTS, *PROMPTS]
    expected, found = plain.score_folds(forms, prompts), graph.score_folds(forms, prompts)
    assert found.shape == (2, 6, 2) and found.dtype == np.float32 and np.abs(expected[0] - expected[1]).max() > 0.01
    assert np.abs(expected - expected.mean(axis=1, keepdims=True)).max() > 0.01  # else anything would be near
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for i in range(6):  # whatever stands beside them
        np.testing.assert_allclose(graph.score_folds(forms[i], prompts[i]), found[:, i : i + 1], atol=1e-5)
    assert graph.score([], []).shape == (0, 2)
    frame = graph.frame(forms, prompts)
    for column, values in plain.frame(forms, prompts).items():
        if column in ("image", "prompt"):
            continue
        np.testing.assert_allclose(frame[column], values, atol=2e-3, err_msg=str(column))
    assert {"quality_std", "quality_percentile"} <= {*frame}


def test_floats_are_scored_as_the_png_of_them(scorers: tuple[Scorer, Scorer]) -> None:
    graph, pixels = scorers[1], torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    as_bytes = (pixels * 255).round().to(torch.uint8)
    np.testing.assert_array_equal(graph(pixels, "a"), graph(as_bytes, "a"))
    for bad in (pixels * 2, torch.full((3, 8, 8), float("nan"))):
        with pytest.raises(DataError, match="outside 0 to 1"):
            graph(bad, "a")


def test_the_file_says_what_it_is_and_has_a_frozen_tower_once(exported: Path, run_dir: Path) -> None:
    import onnx

    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    graph = onnx.load(exported)
    onnx.checker.check_model(graph)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"image": ["batch", 3, 32, 32], "tokens": ["batch", "length"], "scores": ["batch", 2, 2]}
    about = json.loads({entry.key: entry.value for entry in graph.metadata_props}["ipiqa"])
    assert [target["name"] for target in about["targets"]] == ["quality", "alignment"]
    assert about["training"]["images"] == [] and about["training"]["quantiles"]["quality"] == [0, 1, 5]
    bundle = (run_dir / "fold_00" / "model.safetensors").stat().st_size
    assert exported.stat().st_size < 1.3 * bundle  # nearly all of a fold is its embedding of tokens


def test_a_file_whose_scores_are_off_is_not_kept(
    exported: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_write", lambda scorer, path: shutil.copy(exported, path))
    assert export_onnx(run_dir, tmp_path / "same.onnx") < 1e-5
    for fold in (0, 1):
        write(tmp_path / "run" / f"fold_0{fold}", IPIQA, seed=7 + fold)
    with pytest.raises(DataError, match=r"off by 0\.\d+ of their scale, more than 0.0001. It is not kept"):
        export_onnx(tmp_path / "run", tmp_path / "out" / "model.onnx")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_model_that_is_no_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write(tmp_path / "bundle", {"name": "linear_probe", "image_encoder": RESNET})
    forward = onnx_export._Graph.forward

    def one_size(self: Any, image: torch.Tensor) -> torch.Tensor:
        return forward(self, image) * torch.ones(3, 1, 1)

    monkeypatch.setattr(onnx_export._Graph, "forward", one_size)
    with pytest.raises(
        ConfigError, match=r"the model 'linear_probe' cannot be written as ONNX \(.+\). Export a folder"
    ):
        export_onnx(bundle, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_what_cannot_be_loaded_or_written_is_refused_in_one_line(exported: Path, run_dir: Path, tmp_path: Path) -> None:
    import onnx

    foreign = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Abs(x) }'
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    about = json.loads({e.key: e.value for e in onnx.load(exported).metadata_props}["ipiqa"])
    onnx.helper.set_model_props(foreign, {"ipiqa": json.dumps(about)})
    onnx.save(foreign, tmp_path / "liar.onnx")
    onnx.helper.set_model_props(foreign, {"ipiqa": json.dumps(about | {"image_size": "large"})})
    onnx.save(foreign, tmp_path / "odd.onnx")
    (tmp_path / "damaged.onnx").write_bytes(exported.read_bytes()[:5000])
    (tmp_path / "empty.onnx").write_bytes(b"")

    def load(name: str, **changes: Any) -> Callable[[], object]:
        return lambda: ipiqa.load(tmp_path / name if "/" not in name else name, **changes)

    calls = {
        "does not exist. Write one with: ipiqa export MODEL none.onnx": load("none.onnx"),
        "foreign.onnx' was not written by ipiqa": load("foreign.onnx"),
        "liar.onnx' says of itself what its graph is not": load("liar.onnx"),
        "spec.image_size: 'large' is not a whole number": load("odd.onnx"),
        "damaged.onnx' cannot be read": load("damaged.onnx"),
        "empty.onnx' cannot be read": load("empty.onnx"),
        "amp: ": load(str(exported), amp="bf16"),
        "folds: ": load(str(exported), folds=[0]),
        "device: 'tpu' cannot be used": load(str(exported), device="tpu"),
        "device: 'cpu:x' cannot be used": load(str(exported), device="cpu:x"),
        "model.onnx' can only be scored with": lambda: export_onnx(exported, tmp_path / "again.onnx"),
        "model.onnx' is there already": lambda: export_onnx(run_dir, exported),
    }
    for words, call in calls.items():
        with pytest.raises(IpiqaError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)


VIT, QUICK = ({"name": "clip", "architecture": f"tiny-{kind}"} for kind in ("gelu", "quick"))
SECTIONS: dict[str, dict[str, Any]] = {
    "image_only": {"name": "image_only", "image_encoder": QUICK, "head": "mlp"},
    "qa prefix": IPIQA | {"prompt_encoder": TEXT | {"qa_token": "prefix"}},
    "qa suffix": IPIQA | {"prompt_encoder": TEXT | {"qa_token": "suffix"}},
    "image fusion": IPIQA | {"fusion": "image_only"},
    "concatenation": IPIQA | {"fusion": "concatenation", "head": "linear"},
    "cosine fusion": IPIQA | {"fusion": "cross_attention_cosine"},
    "clip_cosine": {"name": "clip_cosine", "image_encoder": RESNET, "prompt_encoder": TEXT},
    "clip_antonyms": {"name": "clip_antonyms", "image_encoder": RESNET, "prompt_encoder": TEXT},
    "linear_probe": {"name": "linear_probe", "image_encoder": RESNET},
    "torchvision": IPIQA | {"image_encoder": {"name": "torchvision_resnet", "depth": 18}},
    "timm": {"name": "kernel_ridge", "most_images": 9, "image_encoder": {"name": "timm", "architecture": "test_vit"}},
    "vit": IPIQA | {"image_encoder": QUICK, "prompt_encoder": QUICK | {"freeze": "all"}},
    "vit and text of open_clip": IPIQA | {"image_encoder": VIT, "prompt_encoder": VIT | {"freeze": "all"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_every_model_and_tower_can_be_exported(name: str, tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", SECTIONS[name])
    assert export_onnx(bundle, tmp_path / "model.onnx") < 2e-5
    plain, graph = ipiqa.load(bundle), ipiqa.load(tmp_path / "model.onnx")
    assert plain.needs_prompt == graph.needs_prompt
    assert difference(plain, graph) < 1e-4


FULL = {
    "RN50": IPIQA | {
        "image_encoder": RESNET | {"layers": [3, 4, 6, 3], "width": 64, "embed_dim": 1024},
        "prompt_encoder": TEXT | {"width": 512, "layers": 12, "heads": 8, "embed_dim": 1024},
    },
    "ViT-B-32": IPIQA | {
        "image_encoder": {"name": "clip", "architecture": "ViT-B-32-quickgelu"},
        "prompt_encoder": {"name": "clip", "architecture": "ViT-B-32-quickgelu", "freeze": "all"},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_towers_of_the_published_sizes_can_be_exported(name: str, tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", FULL[name], size=224)
    assert export_onnx(bundle, tmp_path / "model.onnx") < 2e-5
    plain, graph = ipiqa.load(bundle), ipiqa.load(tmp_path / "model.onnx")
    assert difference(plain, graph, 224) < 1e-4
    assert np.ptp(plain.score(images(6, 224), PROMPTS * 2), axis=0).min() > 1e-3
