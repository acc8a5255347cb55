"""The numbers of the reference implementation, at full size, from stand-in weights of the published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import standin
from reference.checkpoint import parity_batch, reference_state_dict
from torch import nn
from torch.nn.functional import mse_loss

import ipiqa
from ipiqa import registry
from ipiqa.engine.optim import make_adamw, parameter_groups
from ipiqa.models.bundle import REFERENCE_NAMES, load_model
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.models.weights import renamed

NUMBERS = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads((NUMBERS / "parity_agiqa3k_224.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin")
    torch.save(standin.state_dict(standin.FULL, 0), folder / "RN50.pt")
    torch.save({"model": reference_state_dict(0, 224, 2), "epoch": 0}, folder / "checkpoint.pth")
    return folder


def make_model(files: Path, freeze: str = "reference") -> nn.Module:
    weights = str(files / "RN50.pt")
    section = {
        "name": "ipiqa",
        "image_encoder": {"name": "clip", "weights": weights},
        "prompt_encoder": {"name": "clip", "weights": weights, "freeze": freeze},
        "fusion": "cross_attention",
        "head": {"name": "mlp", "dropout": 0.0},
    }
    context = {"image_size": 224, "num_targets": 2}
    model = registry.build("model", registry.resolve("model", section, "model"), "model", context)
    load_model(model, str(files / "checkpoint.pth"), "run.checkpoint")
    return model


def assert_features(found: torch.Tensor, expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found[:, :8], torch.tensor(expected["first8"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.tensor(expected["norm"]), rtol=1e-4, atol=0)


def test_features_and_outputs_equal_the_reference(files: Path, reference: dict) -> None:
    model = make_model(files).eval()
    images = parity_batch(4, 224, 10)
    with torch.no_grad():
        prompts = model.encode_prompts(reference["prompts"])
        token_map, image_feature = model.image_encoder(images)
        assert_features(prompts, reference["text_features"])
        assert_features(image_feature, reference["image_pool"])
        assert_features(model.fusion.pool(token_map, prompts), reference["text_pool"])
        scores = model(images, reference["prompts"])
    torch.testing.assert_close(scores, torch.tensor(reference["eval_output"]), rtol=1e-4, atol=0)


def test_five_training_steps_equal_the_reference(files: Path, reference: dict) -> None:
    model = make_model(files).train()
    images, targets = parity_batch(4, 224, 10), torch.tensor(reference["targets"])
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=0.0,
        head_scale=10.0,
        layer_decay=1.0,
        is_head=is_head,
        depth=parameter_depth(model),
    )
    optimizer = make_adamw(groups, learning_rate=1e-5, beta2=0.999)
    losses = []
    for _ in range(5):
        loss = mse_loss(model(images, reference["prompts"]), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    expected = reference["train_losses"]
    assert losses[:2] == pytest.approx(expected[:2], rel=1e-3)
    assert losses == pytest.approx(expected, rel=0.05)
    with torch.no_grad():
        after = model.eval()(images, reference["prompts"])
    torch.testing.assert_close(after, torch.tensor(reference["eval_output_after"]), rtol=0.05, atol=0.02)


def test_the_parameters_that_train_are_those_of_the_reference(files: Path, reference: dict) -> None:
    model = make_model(files)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".tower." not in name}
    theirs = {name: torch.empty(0) for name in reference["trainable"] if not name.startswith("resnet50.")}
    expected = renamed(theirs, REFERENCE_NAMES)
    assert trained == set(expected)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("prompt_encoder.transformer.", "prompt_encoder.ln_final.")) for n in frozen)


def test_tokens_equal_the_reference() -> None:
    reference = json.loads((NUMBERS / "tokens.json").read_text())
    assert ipiqa.tokenize(reference["prompts"]).tolist() == reference["tokens"]
