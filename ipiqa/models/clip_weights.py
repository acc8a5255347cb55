"""CLIP by name and by file: open_clip's architectures, and the tensors of a whole CLIP named as in OpenAI's release."""

from __future__ import annotations

from typing import Any

from torch import nn

from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.models.weights import Tensors, read_tensors


def architecture_settings(name: str, where: str) -> dict[str, Any]:
    """Returns open_clip's settings of an architecture.

    Raises:
        ConfigError: open_clip does not know the name.
    """
    import open_clip

    settings = open_clip.get_model_config(name)
    if settings is None:
        near = did_you_mean(name, open_clip.list_models())
        raise ConfigError(f"{where}.architecture: open_clip knows no {name!r}.{near} List: open_clip.list_models().")
    return settings


def clip_tensors(architecture: str, weights: str | None, sha256: str | None, where: str) -> Tensors | None:
    """Returns the tensors of a whole CLIP, named as in OpenAI's release, or None when no weights are named.

    Raises:
        DataError: the file cannot be used, or open_clip could not download the tag.
    """
    if weights is None:
        return None
    if architecture == "auto" or not _is_tag(architecture, weights):
        return read_tensors(weights, f"{where}.weights", sha256)
    import open_clip

    try:
        model = open_clip.create_model(architecture, pretrained=weights)
    except Exception as error:
        # The hub's client has many exceptions of its own for a network that does not answer.
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{where}.weights: open_clip could not load {weights!r} for {architecture} ({reason}). "
            f"Without a network, download the file and give its path."
        ) from None
    return dict(model.state_dict())


def _is_tag(architecture: str, weights: str) -> bool:
    import open_clip

    return weights in open_clip.list_pretrained_tags_by_model(architecture)


def load_exactly(module: nn.Module, tensors: Tensors, where: str, may_miss: tuple[str, ...] = ()) -> None:
    """Loads tensors into a module, every one of them and no other.

    Args:
        module: what to fill.
        tensors: values by name.
        where: for messages.
        may_miss: prefixes of names that need not be there.

    Raises:
        DataError: a tensor is missing, unknown or of another shape; the message gives the first of each.
    """
    wanted = module.state_dict()
    missing = [n for n in wanted if n not in tensors and not n.startswith(may_miss or ("\0",))]
    unknown = [n for n in tensors if n not in wanted]
    shapes = [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, first {missing[0]!r}")
    if unknown:
        problems.append(f"{len(unknown)} tensors belong to another model, first {unknown[0]!r}")
    if shapes:
        name = shapes[0]
        got, want = tuple(tensors[name].shape), tuple(wanted[name].shape)
        problems.append(f"{len(shapes)} tensors have another shape, first {name!r} with {got} instead of {want}")
    if problems:
        raise DataError(
            f"{where}: {'; '.join(problems)}. Check that the weights and the model settings belong together."
        )
    module.load_state_dict(tensors, strict=False)
