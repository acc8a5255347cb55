"""A model that stands alone: what rebuilds it, what it predicts, what it was trained on, and the folder to share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ipiqa import registry
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import FORMAT, refuse_newer, replacing, write_json, write_text
from ipiqa.models.weights import Tensors, printable, read_tensors
from ipiqa.processors.image import SquashProcessor

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
PARTS = ("image_encoder", "prompt_encoder", "fusion", "head")
HASH_DIGITS = 16  # of an image's sha256 that are kept

# Settings that say how a model trains, not what it computes.
TRAINING_ONLY = ("freeze", "dropout", "train_embeddings", "weights", "sha256")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a model was trained on, as far as it is known.

    Attributes:
        dataset: name of its part.
        table_sha256: hash of the table; "" where there was none.
        split_sha256: hash of the split.
        fold: number of the fold, -1 for none.
        epoch: number of epochs trained, -1 where not known.
        versions: of ipiqa and torch.
        licence: what whoever passes the weights on must look at.
        images: the first digits of the sha256 of each training image.
    """

    dataset: str = ""
    table_sha256: str = ""
    split_sha256: str = ""
    fold: int = -1
    epoch: int = -1
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What rebuilds a model without any other file, and says what its scores mean.

    Attributes:
        model: resolved section, sizes and architectures explicit, no weights.
        image_size: side S of the input, in pixels.
        processor: resolved section, mean and std included.
        targets: what the T scores of the model mean, in order.
        training: what it was trained on.
    """

    model: dict[str, Any]
    image_size: int
    processor: dict[str, Any]
    targets: tuple[Target, ...]
    training: Training = Training()

    @property
    def target_names(self) -> tuple[str, ...]:
        """T names."""
        return tuple(target.name for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain dictionaries, lists, texts and numbers."""
        content = dataclasses.asdict(self)
        content["targets"], content["training"]["images"] = list(content["targets"]), list(self.training.images)
        return {"format": FORMAT, **content}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> ModelSpec:
        """Returns the spec that `to_dict` wrote.

        Args:
            content: read from a file that nobody has to trust.
            where: the file, for messages.

        Raises:
            DataError: anything in it is missing, unknown or of another type.
        """
        if isinstance(content, Mapping):
            refuse_newer(content, f"{where}:")
            content = {key: value for key, value in content.items() if key != "format"}
        try:
            content = _fields(content, cls, where)
            targets = [Target(**_fields(target, Target, f"{where}: targets")) for target in content["targets"]]
            training = _fields(content["training"], Training, f"{where}: training")
            training["images"] = tuple(map(str, training.get("images", ())))
            if not 1 <= content["image_size"] <= 2**14 or len({target.name for target in targets}) != len(targets):
                raise ConfigError(f"{where}: image_size is out of range, or a target is named twice.")
            return cls(
                model=registry.resolve("model", content["model"], f"{where}: model"),
                image_size=content["image_size"],
                processor=registry.resolve("processor", content["processor"], f"{where}: processor"),
                targets=tuple(targets),
                training=Training(**training),
            )
        except (ConfigError, RecursionError, OverflowError) as error:
            raise DataError(printable(error) if isinstance(error, ConfigError) else f"{where}: no model.") from None

    def build(self) -> nn.Module:
        """Returns the model with random weights, on the CPU.

        Raises:
            ConfigError: no model has these sizes.
        """
        context = {"image_size": self.image_size, "num_targets": len(self.targets)}
        try:
            model: nn.Module = registry.build("model", self.model, "model", context)
        except (RuntimeError, MemoryError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
            raise ConfigError(f"model: cannot be built ({' '.join(str(error).split())[:120]}).") from None
        return model

    def build_processor(self) -> SquashProcessor:
        """Returns what makes the model's inputs of images."""
        processor: SquashProcessor = registry.build(
            "processor", self.processor, "processor", {"image_size": self.image_size}
        )
        return processor

    def differences(self, other: ModelSpec) -> list[str]:
        """Returns in what, field by field, another spec would not compute the same: "setting is A, not B"."""
        own, theirs = (_flat({"model": s.model, "image_size": s.image_size}) for s in (self, other))
        names = [name for name in {**own, **theirs} if name.rpartition(".")[2] not in TRAINING_ONLY]
        return [f"{n} is {own.get(n)!r}, not {theirs.get(n)!r}" for n in names if own.get(n) != theirs.get(n)]


def _fields(content: Any, kind: type, where: str) -> dict[str, Any]:
    """Returns the fields of a dataclass as a file has them: all that have no default, and of the right kind."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {printable(content)[:60]} is not a mapping. Take a folder that ipiqa has written.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [str(name) for name in content if name not in fields]:
        raise ConfigError(f"{where}: {unknown[0][:60]!r} is unknown. It has: {', '.join(fields)}.")
    types = {"str": str, "int": int, "float | None": (int, float, type(None)), "Mapping[str, str]": Mapping}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in content and (not has_default or name == "training"):
            raise ConfigError(f"{where}: {name} is missing.")
        value, wanted = content.get(name), types.get(str(field.type), (list, tuple, Mapping))
        fits = isinstance(value, wanted) and not isinstance(value, bool)  # type: ignore[arg-type]
        if name in content and (not fits or (isinstance(value, float) and not math.isfinite(value))):
            raise ConfigError(f"{where}: {name} is {printable(value)[:60]}, which is of another type.")
    return dict(content)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def own_section(model: nn.Module, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section that rebuilds a built model without any file: each part that can says its own."""
    out = dict(section)
    for kind in PARTS:
        part = getattr(model, kind, None)
        if kind not in section or part is None:
            continue
        if hasattr(part, "section"):
            out[kind] = registry.resolve(kind, part.section(), f"model.{kind}")
        else:
            out[kind] = {key: None if key in ("weights", "sha256") else value for key, value in section[kind].items()}
    return out


def write_bundle(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Writes a folder that `read_bundle` and `ipiqa.load` need nothing else beside: settings, weights, a README."""
    from safetensors.torch import save

    with replacing(folder / WEIGHTS, "wb") as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}))
    write_json(folder / CONFIG, spec.to_dict())
    known, names = spec.training, ", ".join(spec.target_names)
    write_text(
        folder / README,
        f"# {spec.model['name']} at {spec.image_size} px\n\nPredicts {names} of images"
        f"{' and their prompts' if 'prompt_encoder' in spec.model else ''}, in units of the scores it was trained on"
        f"{f' ({known.dataset}, {len(known.images)} images)' if known.dataset else ''}.\n\n```python\nimport ipiqa\n\n"
        'scorer = ipiqa.load("this/folder")\nscores = scorer.score("image.png", "its prompt")  '
        f"# (1, {len(spec.targets)})\n```\n\n{known.licence}\n",
    )


def read_bundle(folder: Path, where: str) -> tuple[ModelSpec, Tensors]:
    """Returns the settings and the weights of a folder that `write_bundle` wrote.

    Raises:
        DataError: a file is missing or damaged.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = printable(error)[:100]
        raise DataError(f"{where}: '{path}' cannot be read ({reason}). Take a folder that ipiqa has written.") from None
    return ModelSpec.from_dict(content, str(path)), read_tensors(folder / WEIGHTS, where, hint="Copy the whole folder.")
