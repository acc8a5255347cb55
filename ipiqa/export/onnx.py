"""One file that scores without PyTorch: written as ONNX, then compared with the model it was made of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.export.files import new
from ipiqa.files import require_package
from ipiqa.models.weights import one_line
from ipiqa.prompts import CONTEXT_LENGTH
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.onnx_scorer import IMAGE, METADATA, SCORES, TOKENS, OnnxScorer

TOLERANCE = 1e-4  # of a target's scale: how far scores may be from those of PyTorch
BATCHES = (1, 2, 5)  # sizes that are compared


def export_onnx(what: str | Path, path: Path, *, folds: Sequence[int] | None = None) -> float:
    """Writes one .onnx file for all folds of a model and returns how far its scores are from PyTorch's.

    That is the largest absolute difference, as a share of the target's scale. Above TOLERANCE the file is not kept:
    DataError. Weights of 2 GB and more stand in a second file, NAME.onnx.data. `what` is as for `ipiqa.load`.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, f"ipiqa export {path.name}")
    scorer = load_models(what, "cpu", folds=folds)
    with new(path) as temporary:
        _write(scorer, temporary, what)
        difference = _difference(scorer, OnnxScorer(temporary, device="cpu"))
        if not difference <= TOLERANCE:
            problem = f"its scores in onnxruntime are off by {difference:.2g} of their scale, more than {TOLERANCE:g}"
            raise DataError(f"ipiqa export: '{what}': {problem}. No file is kept; use the model as it is.")
    return difference


class _Graph(nn.Module):
    """uint8 images and tokens -> scores (B, F, T): what a scorer does, in one graph."""

    def __init__(self, scorer: ModelScorer) -> None:
        super().__init__()
        self.models = nn.ModuleList(scorer.models)
        _share_prompt_encoders(self.models)
        self.mean, self.std = nn.Buffer(scorer.processor.mean), nn.Buffer(scorer.processor.std)
        for number, model in enumerate(scorer.models):
            if (fixed := getattr(model, "fixed_prompts", None)) is not None:  # its features need not be computed again
                self.register_buffer(f"fixed_{number}", model.get_submodule("prompt_encoder")(fixed))

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        inputs = (image.float() / 255 - self.mean) / self.std
        each = [model(inputs, getattr(self, f"fixed_{n}", tokens)) for n, model in enumerate(self.models)]
        return torch.stack(each, dim=1)


def _share_prompt_encoders(models: nn.ModuleList) -> None:
    """Lets folds whose prompt encoders are equal, as frozen ones are, have one: it is written and computed once."""
    first, *others = (getattr(model, "prompt_encoder", None) for model in models)
    for model, encoder in zip(list(models)[1:], others, strict=True):
        if first is not None and encoder is not None:
            own, common = encoder.state_dict(), first.state_dict()
            if own.keys() == common.keys() and all(torch.equal(own[name], common[name]) for name in own):
                model.prompt_encoder = first


class _GraphOfImages(_Graph):
    """The same for models that read no prompt."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(image, torch.zeros(len(image), 1, dtype=torch.long))


def _write(scorer: ModelScorer, path: Path, what: str | Path) -> None:
    size = scorer.image_size
    inputs = {IMAGE: torch.zeros(3, 3, size, size, dtype=torch.uint8)}
    dynamic = {IMAGE: {0: "batch"}}
    if scorer.needs_prompt:
        inputs[TOKENS] = scorer.tokenize(["a", "a b", "a b c d"])
        dynamic[TOKENS] = {0: "batch"}
        if all(getattr(getattr(model, "prompt_encoder", None), "any_length", False) for model in scorer.models):
            inputs[TOKENS] = inputs[TOKENS][:, : CONTEXT_LENGTH // 2]  # any but the whole
            dynamic[TOKENS][1] = "length"
    graph = (_Graph if scorer.needs_prompt else _GraphOfImages)(scorer).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        try:
            program = torch.onnx.export(
                graph, kwargs=inputs, dynamo=True, dynamic_shapes=dynamic, output_names=[SCORES], verbose=False
            )
            assert program is not None
            if any(isinstance(node.shape[0], int) for node in program.model.graph.inputs):
                raise torch.onnx.OnnxExporterError("its graph takes batches of one size alone")
        except torch.onnx.OnnxExporterError as error:
            name = scorer.spec.model["name"]
            problem = f"the model {name} cannot be written as ONNX ({one_line(error)})"
            raise ConfigError(f"ipiqa export: '{what}': {problem}. Export a folder.") from None
    spec = replace(scorer.spec, training=replace(scorer.trained_on, images=[]))
    program.model.producer_name = "ipiqa"
    program.model.metadata_props[METADATA] = json.dumps(spec.to_dict())
    program.save(path)


def _difference(scorer: ModelScorer, other: OnnxScorer) -> float:
    """Returns the largest difference between two scorers over random images, as a share of the target's scale."""
    generator, found = torch.Generator().manual_seed(0), 0.0
    _, span = scorer.scales()
    for batch in BATCHES:
        shape = (batch, 3, scorer.image_size, scorer.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        prompts = ["red tree " * (1 + 9 * i) for i in range(batch)]  # the longest fills most of the context
        first, second = (s.score_folds(images, prompts) for s in (scorer, other))
        found = float(np.maximum(found, (np.abs(first - second) / span).max()))  # nan stays nan
    return found
