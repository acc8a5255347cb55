"""A short Image2Prompt-style warm-up for tiny encoders: no released CLIP is small enough to be trained on in minutes.

Image and prompt encoder learn together that a picture's feature is nearest to its own prompt's (in-batch contrastive,
Radford et al. 2021), with each prompt's near miss among the wrong answers (as Yuksekgonul et al. 2023 do). The paper's
own Image2Prompt pre-training keeps the text tower fixed; here both towers start from noise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ipiqa import registry
from ipiqa.build import make_dataset, make_processor
from ipiqa.config.loading import Config
from ipiqa.demo.database import Pairs, render_pairs
from ipiqa.errors import ConfigError
from ipiqa.files import replacing
from ipiqa.models.towers.clip_image import ImageEncoder
from ipiqa.models.towers.clip_text import PromptEncoder
from ipiqa.prompts import tokenize

logger = logging.getLogger("ipiqa")

Normalise = Callable[[torch.Tensor], torch.Tensor]  # uint8 images (B, 3, S, S) -> float32

FORMAT = 3  # raised when the rendering or this training changes: older files are then made anew
NUM_TEST = 512  # pairs kept back to measure retrieval

# Factor on the finished prompt features. Cosines do not change, but a fresh cross-attention pool takes the feature as
# its query, and learns to compare sooner from a longer one.
QUERY_SCALE = 5.0


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Settings of the warm-up."""

    num_pairs: int = 16384
    epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    seed: int = 0


def warm_up(config: Config, settings: WarmUp) -> Path:
    """Trains the encoders of a config on rendered pairs and returns the file of their weights.

    The file is the one that both encoders' `weights` name; its tensors are named as OpenAI names them. If it is there
    and was made with the same settings, nothing is done. No prompt of the config's dataset is seen.

    Raises:
        ConfigError: the encoders name no common weights file, or one that something else has made.
        DataError: the dataset's table cannot be read.
    """
    path = _target(config)
    sections = {part: {**config.model[part], "weights": None} for part in ("image_encoder", "prompt_encoder")}
    sections["prompt_encoder"] |= {"freeze": "none", "qa_token": "none", "train_embeddings": None}  # not as the folds
    table = make_dataset(config).load()
    described = {
        "format": FORMAT,
        "image_size": config.image_size,
        "table": table.sha256,
        **sections,
        **asdict(settings),
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    if path.exists():
        if _digest_of(path) == digest:
            logger.info("%s is there already, made with these settings", path)
            return path
        if _digest_of(path) is None:
            raise ConfigError(
                f"{path}: not made by the warm-up, so not overwritten. Name another file in the encoders' weights."
            )
    pairs = render_pairs(
        settings.num_pairs + NUM_TEST,
        seed=settings.seed,
        image_size=config.image_size,
        exclude=sorted(set(table.prompts)),
    )
    torch.manual_seed(settings.seed)
    image_encoder: ImageEncoder = registry.build(
        "image_encoder", sections["image_encoder"], "model.image_encoder", {"image_size": config.image_size}
    )
    prompt_encoder: PromptEncoder = registry.build(
        "prompt_encoder", sections["prompt_encoder"], "model.prompt_encoder", {}
    )
    _train(image_encoder, prompt_encoder, pairs, make_processor(config).normalise, settings)
    tensors = {**image_encoder.clip_tensors(), **prompt_encoder.clip_tensors()}
    with replacing(path, "wb") as file:
        file.write(serialise({n: t.contiguous() for n, t in tensors.items()}, metadata={"warm_up": digest}))
    return path


def _target(config: Config) -> Path:
    files = {config.model.get(part, {}).get("weights") for part in ("image_encoder", "prompt_encoder")}
    if len(files) != 1 or None in files:
        raise ConfigError(
            "model.image_encoder.weights and model.prompt_encoder.weights must name the one file to be made."
        )
    return Path(files.pop())


def _digest_of(path: Path) -> str | None:
    """Returns the settings hash inside a file of the warm-up, or None for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("warm_up")
    except (SafetensorError, OSError):
        return None


def _train(
    image_encoder: ImageEncoder, prompt_encoder: PromptEncoder, pairs: Pairs, normalise: Normalise, settings: WarmUp
) -> None:
    """Trains both encoders in place."""
    images, prompts, misses = torch.from_numpy(pairs.images), tokenize(pairs.prompts), tokenize(pairs.near_misses)
    # Each picture must also be nearest to the words for its distortion; else the features learn to overlook it.
    looks = sorted(set(pairs.looks))
    look_tokens, look_of = tokenize(looks), torch.tensor([looks.index(text) for text in pairs.looks])
    count, size = len(images) - NUM_TEST, settings.batch_size
    log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
    parameters = [p for p in (*image_encoder.parameters(), *prompt_encoder.parameters(), log_scale) if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    batches = [batch for epoch in range(settings.epochs) for batch in _batches(count, size, settings.seed, epoch)]
    bar = tqdm(batches, desc="warm-up of the encoders", disable=None)
    for step, rows in enumerate(bar):
        decay = 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / 50) * decay
        with torch.autocast("cpu", torch.bfloat16):
            _, image_features = image_encoder(normalise(images[rows]))
            text_features = prompt_encoder(torch.cat([prompts[rows], misses[rows], look_tokens]))
        image_features, text_features = image_features.float(), text_features.float()
        prompt_features, look_features = text_features[: 2 * size], text_features[2 * size :]
        loss = contrastive_loss(image_features, prompt_features, log_scale.exp())
        loss = loss + look_loss(image_features, look_features, look_of[rows], log_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}")
    image_encoder.eval()
    prompt_encoder.eval()
    with torch.no_grad():
        prompt_encoder.text_projection.mul_(QUERY_SCALE)
        found = image_encoder(normalise(images[count:]))[1]
        features = prompt_encoder(torch.cat([prompts[count:], misses[count:]]))
    recall, right = (100 * share for share in retrieval(found, features))
    logger.info(
        "warm-up: the right prompt among %d: %.1f %%; preferred to its near miss: %.1f %%", NUM_TEST, recall, right
    )


def _batches(count: int, size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """Returns the row numbers of an epoch's batches, the last partial one dropped."""
    order = torch.from_numpy(np.random.default_rng([seed, 5, epoch]).permutation(count))
    return list(order[: count // size * size].split(size))


def contrastive_loss(images: torch.Tensor, prompts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns the sum of both directions' cross-entropies.

    Args:
        images: (B, D) image features.
        prompts: (2 B, D): the prompts of the images, then their near misses, which only images are compared with.
        scale: factor on the cosines.
    """
    logits = functional.normalize(images, dim=1) @ functional.normalize(prompts, dim=1).T * scale
    right = torch.arange(len(images))
    return functional.cross_entropy(logits, right) + functional.cross_entropy(logits[:, : len(images)].T, right)


def look_loss(images: torch.Tensor, looks: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of telling by cosine which words describe each picture's distortion.

    Args:
        images: (B, D) image features.
        looks: (L, D) features of all the descriptions.
        right: (B,) which of them is right.
        scale: factor on the cosines.
    """
    logits = functional.normalize(images, dim=1) @ functional.normalize(looks, dim=1).T * scale
    return functional.cross_entropy(logits, right)


def retrieval(images: torch.Tensor, prompts: torch.Tensor) -> tuple[float, float]:
    """Returns (recall@1 among the B right prompts, share of images nearer to their prompt than to its near miss)."""
    cosines = functional.normalize(images, dim=1) @ functional.normalize(prompts, dim=1).T
    count = len(images)
    own, near = cosines[:, :count].diagonal(), cosines[:, count:].diagonal()
    is_first = cosines[:, :count].argmax(1) == torch.arange(count)
    return float(is_first.float().mean()), float((own > near).float().mean())
