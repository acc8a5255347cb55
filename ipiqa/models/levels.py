"""CLIP asked in words: which level of a scale does a text name that fits the image best, from bad to perfect?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError
from ipiqa.models.distribution import levels as scores_of_levels
from ipiqa.models.fusion import check_comparable
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures, Prompts
from ipiqa.registry import register

LEVEL, PROMPT = "{level}", "{prompt}"  # what stands in a template for the level's word and for the user's prompt
TEMPLATES = {
    "quality": "a {level} picture of '{prompt}'",
    "alignment": "a picture that {level} matches '{prompt}'",
}
LEVELS = {
    "quality": ["bad", "poor", "fair", "good", "perfect"],
    "alignment": ["badly", "poorly", "fairly", "well", "perfectly"],
}


class LevelPrompts(PromptFeatures):
    """A prompt encoder that gives a prompt the features of K texts, in each of which the prompt is written.

    Texts are put together of tokens, so that a prompt that is too long loses its last words, the template none, and no
    word of one runs into the other.
    """

    templates: torch.Tensor  # (K, W) tokens: start, those before the prompt, those behind it, end, zeros
    counts: torch.Tensor  # (K, 2): tokens before the prompt, and most that there may be of it

    def __init__(self, encoder: PromptFeatures, texts: Sequence[str]) -> None:
        """Takes K texts, of which each may have a "{prompt}"; ConfigError where the encoder cannot read them."""
        super().__init__()
        self.encoder, self.embed_dim, self.any_length = encoder, encoder.embed_dim, encoder.any_length
        start, end, *padding = encoder.tokenize([""])[0].tolist()
        self.context = 2 + len(padding)
        self.free = self.context - (getattr(encoder, "qa_token", "none") != "none")  # a [QA] token is put in later
        if end <= start or any(padding):
            problem = "the tokens of this prompt encoder are not CLIP's, which templates are made of"
            raise ConfigError(f"model.prompt_encoder: {problem}. Take a CLIP such as ViT-B-32-quickgelu.")
        rows, counts = [], []
        for text in texts:
            before, has_prompt, behind = text.partition(PROMPT)
            first, last = ([t for t in encoder.tokenize([part])[0].tolist() if t] for part in (before, behind))
            rows.append([*first[:-1], *last[1:]])
            counts.append([len(first) - 1, self.free - len(rows[-1]) if has_prompt else 0])
            if len(first) + len(last) > self.free:  # start and end are in both: at least two words of a prompt are read
                problem = f"{text!r} leaves no room for a prompt in the {self.context} tokens that are read"
                raise ConfigError(f"model.templates: {problem}. Write a shorter one.")
        width = max(map(len, rows)) + 1
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        self.register_buffer("templates", padded, persistent=False)
        self.register_buffer("counts", torch.tensor(counts), persistent=False)

    def section(self) -> dict[str, Any]:
        return self.encoder.section()

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.encoder.tokenize(prompts)

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, K, D) of the tokens (P, L) of prompts."""
        texts = self.texts(tokens)
        return self.encoder(texts.flatten(0, 1)).unflatten(0, texts.shape[:2])

    def texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the tokens (P, K, context) of the K texts with each of the prompts (P, L) in them."""
        tokens = tokens.to(self.templates.device)
        before, room = self.counts.unsqueeze(2).unbind(1)  # (K, 1) each
        end = tokens.argmax(dim=1).clamp(min=1)[:, None, None]  # the end token has the highest number
        words = torch.minimum(end - 1, room)  # (P, K, 1)
        shape = (len(tokens), len(before), self.context)
        place = torch.arange(self.context, device=tokens.device)
        in_template = (place - words * (place >= before)).clamp(0, self.templates.shape[1] - 1)  # the last is a zero
        in_prompt = (place - before + 1).clamp(1, tokens.shape[1] - 1)
        of_template = self.templates.expand(len(tokens), -1, -1).gather(2, in_template)
        of_prompt = tokens[:, None].expand(-1, shape[1], -1).gather(2, in_prompt.expand(shape))
        return torch.where((place >= before) & (place < before + words), of_prompt, of_template)


@register("model", "clip_levels")
class CLIPLevels(nn.Module):
    """How near the image is to texts that say how good it is, level by level: zero-shot, or fine-tuned.

    The cosines of the image with a target's L texts go through a softmax, and the score is the mean of the levels,
    evenly from the lowest to the highest score of the target, by these probabilities. Levels in words and their mean
    are those of Zhang et al. 2023, LIQE; with the user's prompt in them, of Peng et al. 2024, IPCE.
    """

    is_zero_shot = True
    takes_one_image = True
    reads_token_map = False
    per_target = ("log_scale",)
    values: torch.Tensor  # (K,) the score that each text stands for

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, targets: Sequence[Target], *,
        templates: dict[str, str] | None = None, levels: dict[str, list[str]] | None = None, temperature: float = 0.01,
    ) -> None:  # fmt: skip
        """Makes the texts of targets of known scale, for towers of one CLIP.

        Args:
            templates: text of a target by its name, with {level} in it and, where it is to be read, {prompt}; those of
                quality and alignment are known.
            levels: words of a target by its name, worst first; those of quality and alignment are known.
            temperature: by which cosines are divided before training; CLIP's own is 0.01.
        """
        super().__init__()
        check_comparable(image_encoder, prompt_encoder)
        if not 1e-4 <= temperature <= 100:
            raise ConfigError(f"model.temperature: {temperature:g} is out of range. Give 0.0001 to 100.")
        texts, values, self.counts = [], [], []
        for target in targets:
            own = _texts(target.name, TEMPLATES | (templates or {}), LEVELS | (levels or {}))
            texts += own
            values.append(scores_of_levels(target, len(own)))
            self.counts.append(len(own))
        self.image_encoder, self.prompt_encoder = image_encoder, LevelPrompts(prompt_encoder, texts)
        self.reads_prompt = any(PROMPT in text for text in texts)
        self.log_scale = nn.Parameter(torch.full((len(self.counts),), temperature).log().neg())
        self.register_buffer("values", torch.cat(values), persistent=False)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32, on the scale of each target; one image may be given for all of B prompts."""
        image_feature, text_features = self.image_encoder(images)[1], self.prompt_encoder(prompts)  # (B, D), (B, K, D)
        with torch.autocast(image_feature.device.type, enabled=False):
            cosines = functional.cosine_similarity(image_feature.float()[:, None], text_features.float(), dim=2)
            of_target = zip(
                cosines.split(self.counts, dim=1), self.values.split(self.counts), self.log_scale.exp(), strict=True
            )
            return torch.stack([(scale * own).softmax(dim=1) @ value for own, value, scale in of_target], dim=1)


def _texts(target: str, templates: Mapping[str, str], levels: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the texts of a target, worst first, with {prompt} left in them; ConfigError where there are none."""
    if target not in templates or target not in levels:
        example = "model.templates={NAME: 'a {level} picture'} and model.levels={NAME: [bad, fair, good]}"
        raise ConfigError(f"model: no templates or levels for the target {target!r}. Give both, as {example}.")
    text, words = templates[target], levels[target]
    if text.count(LEVEL) != 1 or text.count(PROMPT) > 1:
        example = f"'a {LEVEL} picture of {PROMPT}'"
        raise ConfigError(f"model.templates.{target}: {text!r} lacks {LEVEL} or repeats. Write one like {example}.")
    if len(set(words)) != len(words) or len(words) < 2 or not all(word.strip() for word in words):
        raise ConfigError(f"model.levels.{target}: {list(words)} is no scale. Give two or more words, worst first.")
    return [text.replace(LEVEL, word) for word in words]
