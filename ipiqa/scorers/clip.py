"""CLIP as it was published, as a scorer: nothing is trained on scores."""

import torch
from torch import nn

from ipiqa import registry
from ipiqa.datasets.table import Target
from ipiqa.errors import DataError
from ipiqa.models.bundle import ModelSpec, own_section
from ipiqa.models.clip_weights import architecture_settings, load_exactly
from ipiqa.models.levels import LEVELS
from ipiqa.models.towers import set_normalisation
from ipiqa.models.weights import one_line, read_tensors
from ipiqa.registry import FilePath, register

WEIGHT = 2.5  # of the cosine in CLIPScore


@register("scorer", "clipscore")
def clipscore(*, architecture: str = "ViT-B-32-quickgelu", weights: FilePath = "openai") -> tuple[ModelSpec, nn.Module]:
    """Returns CLIPScore (Hessel et al. 2021): 2.5 times the cosine of image and prompt.

    It is not cut at 0, no "A photo depicts" is put before the prompt, and images are squashed, not cropped.

    Args:
        architecture: name open_clip knows; "auto" reads a ResNet's sizes off the weights.
        weights: file or pretrained tag, as for the image encoder `clip`.
    """
    target = Target("alignment", 0.0, WEIGHT, f"CLIPScore: {WEIGHT} times the cosine of image and prompt in CLIP")
    spec, model = _zero_shot("clip_cosine", [target], architecture, weights)
    with torch.no_grad():
        model.get_parameter("slope").fill_(WEIGHT)
    return spec, model


@register("scorer", "clip_iqa")
def clip_iqa(*, architecture: str = "RN50-quickgelu", weights: FilePath = "openai") -> tuple[ModelSpec, nn.Module]:
    """Returns how much nearer an image is to "Good photo." than to "Bad photo." (see the model `clip_antonyms`)."""
    target = Target("quality", 0.0, 1.0, "CLIP's probability of 'Good photo.' against 'Bad photo.'")
    return _zero_shot("clip_antonyms", [target], architecture, weights)


@register("scorer", "clip_levels")
def clip_levels(
    *, architecture: str = "ViT-B-32-quickgelu", weights: FilePath = "openai"
) -> tuple[ModelSpec, nn.Module]:
    """Returns quality and alignment as the mean of five levels, each named in a text that holds the prompt."""
    targets = [Target(name, 0.0, 1.0, f"{name} in five words, by CLIP: {', '.join(LEVELS[name])}") for name in LEVELS]
    return _zero_shot("clip_levels", targets, architecture, weights)


@register("scorer", "hpsv2")
@register("scorer", "pickscore")
def preference(*, weights: FilePath, architecture: str = "ViT-H-14") -> tuple[ModelSpec, nn.Module]:
    """Returns the cosine of image and prompt in a CLIP that was tuned to what people choose, as for HPS v2.1.

    Of PickScore that is all but its factor. Tensors of the file are named as open_clip names them.
    """
    target = Target("preference", -1.0, 1.0, "preference: which image of a prompt people would choose")
    return _zero_shot("clip_cosine", [target], architecture, weights)


@register("scorer", "laion_aesthetics")
def laion_aesthetics(
    *, layers: FilePath, architecture: str = "ViT-L-14-quickgelu", weights: FilePath = "openai"
) -> tuple[ModelSpec, nn.Module]:
    """Returns LAION's aesthetics predictor V2: the linear layers of a file, nothing between them, on CLIP's feature."""
    target = Target("aesthetics", 1.0, 10.0, "aesthetics: how people liked such images, 1 to 10, by LAION")
    spec, model = _zero_shot("clip_linear", [target], architecture, weights)
    size, where = model.get_parameter("layer.weight").shape[1], f"settings.layers: '{layers}'"
    tensors = read_tensors(layers, "settings.layers", hint="Give sac+logos+ava1-l14-linearMSE.pth.")
    weight, bias = torch.eye(size).double(), torch.zeros(size).double()
    try:
        for name in sorted({name.rpartition(".")[0] for name in tensors}):  # layers one after the other are one layer
            own = tensors[f"{name}.weight"].double()
            weight, bias = own @ weight, own @ bias + tensors[f"{name}.bias"]
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{where} does not fit {architecture} ({one_line(error)}). Give the file for it.") from None
    load_exactly(model.get_submodule("layer"), {"weight": weight.float(), "bias": bias.float()}, where)
    return spec, model


def _zero_shot(name: str, targets: list[Target], architecture: str, weights: str) -> tuple[ModelSpec, nn.Module]:
    """Returns a zero-shot model on a published CLIP, at the image size that was trained with (224 px for "auto")."""
    vision = {} if architecture == "auto" else architecture_settings(architecture, "settings")["vision_cfg"]
    tower = {"name": "clip", "architecture": architecture, "weights": weights, "freeze": "all"}
    towers = [key for key in registry.keys_of("model", name) if key.endswith("_encoder")]
    section = registry.resolve("model", {"name": name} | dict.fromkeys(towers, tower), "model")
    processor, size = registry.resolve("processor", "squash", "processor"), vision.get("image_size", 224)
    set_normalisation(processor, section["image_encoder"])
    context = {"image_size": size, "num_targets": len(targets), "targets": targets}
    model: nn.Module = registry.build("model", section, "model", context)
    own = own_section(model, section)
    return ModelSpec(model=own, image_size=size, processor=processor, targets=tuple(targets)), model
