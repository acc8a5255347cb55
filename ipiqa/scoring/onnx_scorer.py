"""Models exported as ONNX: scored by onnxruntime, without building the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ipiqa.errors import ConfigError, DataError
from ipiqa.files import require_package
from ipiqa.models.bundle import ModelSpec
from ipiqa.models.towers import tokenizer_of
from ipiqa.models.weights import one_line
from ipiqa.scoring.images import OneImage, as_bytes, prepare
from ipiqa.scoring.scorer import Scorer

METADATA = "ipiqa"  # key under which the file holds the ModelSpec
IMAGE, TOKENS, SCORES = "image", "tokens", "scores"  # uint8 (B, 3, S, S), int64 (B, L) -> float32 (B, F, T)


class OnnxScorer(Scorer):
    """One model, or several folds in one graph. Tensors of floats are scored as 8-bit images, to which they round."""

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        """Opens a file that `ipiqa export` wrote; `device` as for `ipiqa.load`. DataError: it is no such file."""
        runtime, where = require_package("onnxruntime", "An .onnx file"), f"ipiqa.load: '{path}'"
        how = f"Write one with: ipiqa export MODEL {path.name}"
        if not path.is_file():
            raise DataError(f"{where} does not exist. {how}.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # as OMP_NUM_THREADS says, which it does not read
        options.log_severity_level = 3  # errors alone, which are raised as well
        providers = _providers(device, runtime.get_available_providers())
        try:
            self._session = runtime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime has many of its own
            raise DataError(f"{where} cannot be read ({one_line(error)}). Export it again.") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            self.spec = ModelSpec.from_dict(json.loads(metadata[METADATA]), where)
        except (KeyError, ValueError, RecursionError):
            raise DataError(f"{where} was not written by ipiqa. {how}.") from None
        self.targets, self.image_size, self.trained_on = self.spec.targets, self.spec.image_size, self.spec.training
        shapes = {node.name: node.shape for node in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.needs_prompt = TOKENS in shapes
        image, scores = shapes.get(IMAGE, [])[1:], shapes.get(SCORES, [])
        if image != [3, self.image_size, self.image_size] or scores[2:] != [len(self.targets)]:
            raise DataError(f"{where} says of itself what its graph is not. Export it again.")
        self.num_folds = scores[1]
        self.processor = self.spec.build_processor()
        self._tokenize = tokenizer_of(self.spec.model.get("prompt_encoder"))
        self._cuts_tokens = self.needs_prompt and not isinstance(shapes[TOKENS][1], int)

    def prepare(self, image: OneImage) -> np.ndarray:
        return prepare(as_bytes(image), self.processor).numpy()

    def outputs(self, prepared: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        inputs = {IMAGE: np.stack(prepared)}
        if self.needs_prompt:
            tokens = self._tokenize(prompts)
            # behind the longest prompt's end token, the one with the highest number, nothing counts
            length = int(tokens.argmax(dim=1).max()) + 1 if self._cuts_tokens else tokens.shape[1]
            inputs[TOKENS] = tokens[:, :length].numpy()
        scores: np.ndarray = self._session.run([SCORES], inputs)[0]
        return np.ascontiguousarray(scores.transpose(1, 0, 2))


def _providers(device: str, available: Sequence[str]) -> list[str | tuple[str, dict[str, str]]]:
    """Returns onnxruntime's names of what computes on a device; ConfigError where it cannot be used."""
    kind, _, number = device.partition(":")
    has_cuda = "CUDAExecutionProvider" in available
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cuda" and not has_cuda):
        found = "cpu and cuda" if has_cuda else "cpu; a GPU needs: pip install onnxruntime-gpu"
        raise ConfigError(f"device: {device!r} cannot be used for an .onnx file. There is {found}.")
    cuda = [("CUDAExecutionProvider", {"device_id": number or "0"})] if has_cuda and kind != "cpu" else []
    return [*cuda, "CPUExecutionProvider"]
