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
from ipiqa.export.folder import new
from ipiqa.files import require_package
from ipiqa.models.weights import Tensors, one_line
from ipiqa.prompts import CONTEXT_LENGTH
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.onnx_scorer import IMAGE, METADATA, SCORES, TOKENS, OnnxScorer

TOLERANCE = 1e-4  # of a target's scale: how far scores may be from those of PyTorch
BATCHES = (1, 2, 5)  # sizes that are compared
OBJECTS = ("a red tree", "two cats", "an old house, oil painting", "the moon", "a bicycle")


def export_onnx(what: str | Path, path: Path, *, folds: Sequence[int] | None = None) -> float:
    """Writes one .onnx file for all folds of a model and returns how far its scores are from PyTorch's.

    That is the largest absolute difference, as a share of the target's scale. Above TOLERANCE no file is kept:
    DataError. Weights of 2 GB and more stand in a second file, NAME.onnx.data. `what` is as for `ipiqa.load`.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, f"ipiqa export {path.name}")
    scorer = load_models(what, "cpu", folds=folds)
    if scorer.processor.gives_views:
        raise ConfigError(f"ipiqa export: '{path.name}': a model of several views is no one graph. Export a folder.")
    with new(path) as temporary:
        _write(scorer, temporary)
        difference = _difference(scorer, OnnxScorer(temporary, device="cpu"))
        if not difference <= TOLERANCE:
            problem = f"scores in onnxruntime are off by {difference:.2g} of their scale, more than {TOLERANCE:g}"
            raise DataError(f"ipiqa export: '{path}': {problem}. It is not kept; export a folder.")
    return difference


class _Graph(nn.Module):
    """uint8 images and tokens -> scores (B, F, T): what a scorer does, in one graph."""

    def __init__(self, scorer: ModelScorer) -> None:
        super().__init__()
        self.models = nn.ModuleList(scorer.models)
        self.mean, self.std = nn.Buffer(scorer.processor.mean), nn.Buffer(scorer.processor.std)
        common = dict(scorer.models[0].named_children())
        for number, model in enumerate(scorer.models):
            for name, part in model.named_children():
                if _is_same(part.state_dict(), common[name].state_dict()):  # a frozen tower is computed once for all
                    setattr(model, name, common[name])
            if (prompts := getattr(model, "fixed_prompts", None)) is not None:
                self.register_buffer(f"fixed_{number}", model.get_submodule("prompt_encoder")(prompts))

    def forward(self, image: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        inputs = (image.float() / 255 - self.mean) / self.std
        tokens = torch.zeros(len(image), 1, dtype=torch.long) if tokens is None else tokens
        each = [model(inputs, getattr(self, f"fixed_{n}", tokens)) for n, model in enumerate(self.models)]
        return torch.stack(each, dim=1)


def _is_same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _write(scorer: ModelScorer, path: Path) -> None:
    inputs = {IMAGE: torch.zeros(3, 3, scorer.image_size, scorer.image_size, dtype=torch.uint8)}
    sizes = {IMAGE: {0: "batch"}, TOKENS: {0: "batch"}}  # those that are open
    if scorer.needs_prompt:
        inputs[TOKENS] = scorer.tokenize(["a", "a b", "a b c d"])
        if all(getattr(getattr(model, "prompt_encoder", None), "any_length", False) for model in scorer.models):
            inputs[TOKENS], sizes[TOKENS][1] = inputs[TOKENS][:, : CONTEXT_LENGTH // 2], "length"
    shapes, graph = {name: sizes[name] for name in inputs}, _Graph(scorer).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.onnx.export(
                graph, kwargs=inputs, dynamo=True, dynamic_shapes=shapes, output_names=[SCORES], verbose=False
            )
        assert program is not None
        if any(node.shape is None or isinstance(node.shape[0], int) for node in program.model.graph.inputs):
            raise torch.onnx.OnnxExporterError("its graph takes batches of one size alone")
    except torch.onnx.OnnxExporterError as error:
        problem = f"the model {scorer.spec.model['name']!r} cannot be written as ONNX ({one_line(error)})"
        raise ConfigError(f"ipiqa export: '{path.name}': {problem}. Export a folder.") from None
    spec = replace(scorer.spec, training=replace(scorer.trained_on, images=[]))
    program.model.metadata_props[METADATA] = json.dumps(spec.to_dict())
    program.save(path)


def _difference(scorer: ModelScorer, other: OnnxScorer) -> float:
    """Returns the largest difference between two scorers over random images, as a share of the target's scale."""
    generator, found, size = torch.Generator().manual_seed(0), [], scorer.image_size
    for batch in BATCHES:
        colours = torch.rand(batch, 3, 4, 4, generator=generator) * 255  # of noise, all scores would be alike
        images = nn.functional.interpolate(colours, size).to(torch.uint8)
        prompts = [f"{OBJECTS[i]} {'and a river ' * 6 * i}" for i in range(batch)]  # the longest fills the context
        first, second = (each.score_folds(images, prompts) for each in (scorer, other))
        found.append(np.abs(first - second).max(axis=(0, 1)) / scorer.scales()[1])
    return float(np.max(found))  # nan where any is
