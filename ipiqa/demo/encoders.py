"""A short contrastive training for tiny encoders: no released CLIP is small enough to be trained on in minutes.

Image and prompt encoder learn together that a picture's feature is nearest to its own prompt's (in-batch contrastive,
Radford et al. 2021), with each prompt's near miss among the wrong ones (as Yuksekgonul et al. 2023 do). The paper's
own Image2Prompt pre-training keeps the text tower fixed; here both towers start from noise.
"""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from ipiqa import registry
from ipiqa.build import make_processor
from ipiqa.config.loading import Config
from ipiqa.demo.database import Picture, draw_pairs, render_all
from ipiqa.engine.predict import Batch, predict
from ipiqa.engine.trainer import Evaluation, Trainer
from ipiqa.errors import ConfigError
from ipiqa.models.towers.clip_image import ImageEncoder
from ipiqa.models.towers.clip_text import PromptEncoder
from ipiqa.models.weights import write_tensors
from ipiqa.prompts import tokenize
from ipiqa.tasks.image2prompt import ImageToPrompt
from ipiqa.training.pretraining import describe_metrics

logger = logging.getLogger("ipiqa")

FORMAT = 4  # raised when the rendering or this training changes: older files are then made anew
NUM_TEST = 512  # pairs kept back to measure retrieval

# Factor on the finished prompt features. Cosines do not change, but a fresh cross-attention pool takes the feature as
# its query, and learns to compare sooner from a longer one.
QUERY_SCALE = 5.0


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Settings of the warm-up; the learning rate climbs over 50 steps and falls along half a cosine."""

    num_pairs: int  # one batch or more
    epochs: int
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    image_size: int = 64  # of the pictures, which need not be that of the table's
    seed: int = 0

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> float:
        """Sets the learning rate of a step and returns it."""
        steps = self.num_pairs // self.batch_size  # of an epoch
        done = epoch * steps + step
        decay = 0.5 * (1 + math.cos(math.pi * done / (self.epochs * steps)))
        optimizer.param_groups[0]["lr"] = rate = self.learning_rate * min(1.0, (done + 1) / 50) * decay
        return rate


def warm_up(config: Config, settings: WarmUp) -> Path:
    """Trains the encoders of a config on rendered pairs of another domain and returns the file of their weights.

    That is the one which `model.prompt_encoder.weights` names; the image encoder's are in it, too. If it is there and
    was made with the same settings, nothing is done; one that something else has made is a ConfigError.
    """
    if (weights := config.model.get("prompt_encoder", {}).get("weights")) is None:
        raise ConfigError("model.prompt_encoder.weights: null. Name the file to be made.")
    path, size = Path(weights), settings.image_size
    sections = {part: {**config.model[part], "weights": None} for part in ("image_encoder", "prompt_encoder")}
    sections["prompt_encoder"] |= {"freeze": "none", "qa_token": "none", "train_embeddings": None}  # not as the folds
    origin = {"format": FORMAT, **sections, **asdict(settings)}
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    if path.exists() and _digest_of(path) == digest:
        logger.info("%s is there already, made with these settings", path)
        return path
    pairs = draw_pairs(settings.num_pairs + NUM_TEST, seed=settings.seed, image_size=size, negative=True)
    torch.manual_seed(settings.seed)
    model = TwoTowers(*(registry.build(p, sections[p], f"model.{p}", {"image_size": size}) for p in sections))
    _train(model, *pairs, make_processor(config).normalise, settings)
    tensors = model.image_encoder.clip_tensors() | model.prompt_encoder.clip_tensors()
    write_tensors(path, tensors, {"warm_up": digest})
    return path


def _digest_of(path: Path) -> str:
    """Returns the settings hash inside a file of the warm-up; a file made by something else is a ConfigError."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()["warm_up"]
    except (SafetensorError, OSError, KeyError, TypeError):
        problem = "not made by the warm-up, so not overwritten"
        raise ConfigError(f"{path}: {problem}. Name another file in the encoders' weights.") from None


class TwoTowers(nn.Module):
    """An image and a prompt encoder, and the learned factor on their cosines; trains in bf16."""

    def __init__(self, image_encoder: ImageEncoder, prompt_encoder: PromptEncoder) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder = image_encoder, prompt_encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features (B, D) of normalised images (B, 3, S, S) and (N, D) of tokens (N, context), float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            image_features, text_features = self.image_encoder(images)[1], self.prompt_encoder(tokens)
        return image_features.float(), text_features.float()


def matching_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns the sum of two cross-entropies of scaled cosines: image to prompt and prompt to image.

    Of image features (B, D) and text features (2 B, D): the images' prompts, and near misses that only images are
    compared with.
    """
    own, count = torch.arange(len(images)), len(images)
    cosines = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T * scale
    return functional.cross_entropy(cosines, own) + functional.cross_entropy(cosines[:, :count].T, own)


def _train(
    model: TwoTowers, pictures: list[Picture], near_misses: list[str],
    normalise: Callable[[torch.Tensor], torch.Tensor], settings: WarmUp,
) -> None:  # fmt: skip
    """Trains both encoders in place; a training that is interrupted leaves nothing and starts anew."""
    pixels = np.stack(render_all(Picture.pixels, pictures))
    count, size, epochs = settings.num_pairs, settings.batch_size, settings.epochs
    task, device = ImageToPrompt(), torch.device("cpu")
    prompts, misses = tokenize([picture.scene.prompt for picture in pictures]), tokenize(near_misses)
    order = [list(range(size))] * (count // size)  # the batches of an epoch; what is left over is dropped

    def batch_of(rows: Sequence[int]) -> Batch:
        images = normalise(torch.from_numpy(pixels[rows]))
        return {"rows": torch.tensor(rows), "images": images, "tokens": prompts[rows]}

    def start_epoch(epoch: int, first_step: int) -> None:
        rows = np.random.default_rng([settings.seed, 5, epoch]).permutation(count)
        order[:] = rows[: len(order) * size].reshape(-1, size).tolist()

    def compute_loss(module: nn.Module, batch: Batch, epoch: int) -> torch.Tensor:
        images, texts = module(batch["images"], torch.cat([batch["tokens"], misses[batch["rows"]]]))
        return matching_loss(images, texts, model.log_scale.exp())

    def evaluate(module: nn.Module) -> Evaluation:
        held_out = batch_of(range(count, count + NUM_TEST))
        rows, outputs = predict(module, [held_out], task.outputs, device=device)
        metrics, value = task.measure(outputs, None, rows)
        logger.info("warm-up, held out: %s", describe_metrics(metrics))
        return Evaluation(value, metrics, torch.empty(0))

    trained, decay = [p for p in model.parameters() if p.requires_grad], settings.weight_decay
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, (0.9, 0.98), weight_decay=decay, fused=True)
    loader: DataLoader = DataLoader(range(count), batch_sampler=order, collate_fn=batch_of)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="ipiqa-") as folder:
        Trainer(
            model=model, optimizer=optimizer, schedule=settings.apply, train_loader=loader, start_epoch=start_epoch,
            compute_loss=compute_loss, evaluate=evaluate, folder=Path(folder), identity={}, spec={},
            seed=(settings.seed,), device=device, max_epochs=epochs, eval_every=epochs, save_every=epochs,
            label="warm-up, ",
        ).fit()  # fmt: skip
    with torch.no_grad():
        model.prompt_encoder.text_projection.mul_(QUERY_SCALE)
