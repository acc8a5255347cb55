"""Training on the spread of the raters beside their mean."""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ipiqa.errors import ConfigError
from ipiqa.processors.views import over_views
from ipiqa.registry import register
from ipiqa.tasks.quality_regression import Pairs, QualityRegression


@register("task", "distribution")
class Distribution(QualityRegression):
    """Probabilities of scores against what raters gave: a normal distribution of the MOS and the raters' spread."""

    needs_distribution = True

    def __init__(
        self, *, divergence: Literal["kl", "emd"] = "kl", spread: float = 0.1,
        loss: str | dict[str, float] = "mse", pairs: Pairs = "batch",
    ) -> None:  # fmt: skip
        """Sets what is minimised: a divergence, and the loss of the mean as in `quality_regression`.

        Args:
            divergence: of the predicted probabilities from the raters': "kl", or "emd", the mean square of the
                difference of their running sums (Hou, Yu and Samaras 2017).
            spread: standard deviation of raters where the table has none, as a share of the scale, above 0.
            loss: of the mean of the probabilities; like pairs, as for `quality_regression`.
        """
        super().__init__(loss=loss, pairs=pairs)
        if not 0 < spread <= 10:
            raise ConfigError(f"task.spread: {spread:g} is out of range. Give a number above 0, at most 10.")
        self.divergence, self.spread = divergence, spread

    def step(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        outputs = over_views(model, batch["images"], batch["tokens"])  # (B, T, 2, K)
        log_p, scores = outputs[:, :, 0].log_softmax(dim=2), outputs[:, :, 1]  # of a mean over views it is none yet
        known = ~batch["targets"].isnan()
        raters = self.raters(scores, batch["targets"].nan_to_num(), batch.get("spread"))
        if self.divergence == "kl":
            each = functional.kl_div(log_p, raters, reduction="none").sum(dim=2)
        else:
            each = (log_p.exp().cumsum(dim=2) - raters.cumsum(dim=2)).square().mean(dim=2)
        loss = self.loss((log_p.exp() * scores).sum(dim=2), batch["targets"], batch.get("known"), self.groups(batch))
        return loss + (each * known).sum() / known.sum().clamp(min=1)

    def raters(self, scores: torch.Tensor, mos: torch.Tensor, std: torch.Tensor | None) -> torch.Tensor:
        """Returns the probability (B, T, K) that raters give each score (B, T, K) to images of a MOS (B, T)."""
        span, step = scores[..., -1] - scores[..., 0], scores[..., 1] - scores[..., 0]
        given = span * self.spread if std is None else torch.where(std.isnan(), span * self.spread, std)
        deviation = torch.maximum(given, step / 2)[..., None]  # narrower, it would fall between two scores
        return (-0.5 * ((scores - mos[..., None]) / deviation).square()).softmax(dim=2)
