"""CLIP by name and by file: open_clip's architectures, and the tensors of a whole CLIP named as in OpenAI's release."""

import functools
import logging
from typing import Any

from torch import nn

from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.models.weights import Tensors, one_line, read_tensors
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD

logger = logging.getLogger("ipiqa")

QUICK = "-quickgelu"  # what open_clip's name of an architecture ends with when its activation is QuickGELU
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights in OpenAI's releases only


def architecture_settings(name: str, where: str) -> dict[str, Any]:
    """Returns open_clip's settings of an architecture; ConfigError where it does not know the name."""
    import open_clip

    # a name such as hf-hub:owner/model would be downloaded, by whoever opens a checkpoint that names it
    settings = None if ":" in name else open_clip.get_model_config(name)
    if settings is None:
        near = did_you_mean(name, open_clip.list_models())
        raise ConfigError(f"{where}.architecture: open_clip knows no {name!r}.{near} List: open_clip.list_models().")
    return settings


def normalisation(architecture: str, weights: str | None) -> tuple[list[float], list[float]]:
    """Returns mean and std of the images that an architecture of open_clip was trained on.

    Of a tag they are known; of a file they are those of the architecture's tags where these agree, and else CLIP's.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in ([weights] if weights in tags else tags)]
    known = {(tuple(c.get("mean") or CLIP_MEAN), tuple(c.get("std") or CLIP_STD)) for c in configs}
    mean, std = known.pop() if len(known) == 1 else (CLIP_MEAN, CLIP_STD)
    return list(mean), list(std)


def clip_tensors(
    architecture: str, weights: str | None, sha256: str | None, where: str, *, has_gelu: bool = True
) -> Tensors | None:
    """Returns the tensors of a whole CLIP, named as in OpenAI's release, or None when no weights are named.

    The architecture is a name open_clip knows, or "auto"; the weights are a file or a tag, DataError where they cannot
    be read or downloaded. Of a tower that `has_gelu` they were trained with the activation that the architecture
    computes, ConfigError otherwise.
    """
    import open_clip

    if weights is None:
        if architecture == "auto":
            problem = "neither weights nor architecture is given"
            raise ConfigError(f"{where}: {problem}. Set one, e.g. architecture=RN50-quickgelu.")
        return None
    if weights not in open_clip.list_pretrained_tags_by_model(architecture):
        tensors = read_tensors(weights, f"{where}.weights", sha256)
        if architecture != "auto" and has_gelu:
            _check_activation(architecture, weights, tensors.keys() >= OPENAI_MARKS or None, where)
        return tensors
    if has_gelu:
        is_quick = bool(open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu"))
        _check_activation(architecture, weights, is_quick, where)
    try:
        return _tensors_of_tag(architecture, weights)
    except Exception as error:  # the hub's client has many of its own for a network that does not answer
        problem = f"open_clip could not load {weights!r} for {architecture} ({one_line(error)})"
        remedy = "Without a network, download the file and give its path."
        raise DataError(f"{where}.weights: {problem}. {remedy}") from None


def _check_activation(architecture: str, weights: str, is_quick: bool | None, where: str) -> None:
    """Raises ConfigError where the weights were trained with another activation, None for one that is not known."""
    import open_clip

    has_quick = bool(architecture_settings(architecture, where).get("quick_gelu"))
    computed, other = ("QuickGELU", "GELU") if has_quick else ("GELU", "QuickGELU")
    if is_quick is None:
        logger.info("%s.weights: a file does not say its activation; %s computes %s", where, architecture, computed)
        return
    near = architecture + QUICK if is_quick else architecture.removesuffix(QUICK)
    if has_quick != is_quick and near in open_clip.list_models():
        problem = f"{architecture!r} computes {computed}, but the weights '{weights}' were trained with {other}"
        raise ConfigError(f"{where}.architecture: {problem}. Take architecture={near}.")


@functools.lru_cache(maxsize=1)
def _tensors_of_tag(architecture: str, tag: str) -> Tensors:
    import open_clip

    return dict(open_clip.create_model(architecture, pretrained=tag).state_dict())


def load_exactly(module: nn.Module, tensors: Tensors, where: str, may_miss: tuple[str, ...] = ()) -> None:
    """Loads tensors into a module, every one of them and no other; names that begin as `may_miss` need not be there.

    Tensors that are missing, unknown or of another shape are a DataError, which gives the first of each.
    """
    wanted = module.state_dict()
    shapes = {n: (tuple(v.shape), tuple(wanted[n].shape)) for n, v in tensors.items() if n in wanted}
    problems = {
        "are missing": [repr(n) for n in wanted if n not in tensors and not n.startswith(may_miss)],
        "belong to another model": [repr(n[:80]) for n in tensors if n not in wanted],
        "have another shape": [f"{n!r} with {a} instead of {b}" for n, (a, b) in shapes.items() if a != b],
    }
    if any(problems.values()):
        listed = (f"{len(names)} tensors {what}, first {names[0]}" for what, names in problems.items() if names)
        raise DataError(f"{where}: {'; '.join(listed)}. Check that the weights and the model settings belong together.")
    module.load_state_dict(tensors, strict=False)
