"""Ridge regression on features of a frozen tower, solved exactly: what a few hundred images can teach at all."""

from typing import Literal

import torch
from torch import nn

from ipiqa import dist
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import Prompts
from ipiqa.registry import register

LARGEST = 5.0  # standard deviations at which a standardised feature is cut


@register("model", "kernel_ridge")
class KernelRidge(nn.Module):
    """Scores as a weighted sum of how alike an image is to each image of training, plus a constant.

    Features are standardised by those of training. Each part of them (see `ImageTower.parts`) gives a kernel, x.y / D
    or exp(-|x - y|^2 / 2D), and the mean of these is used, so that a long part does not outweigh a short one. Weights
    are the solution of ridge regression, the constant that of generalised least squares (Rasmussen and Williams 2006,
    section 2.7). Nothing is descended: one epoch shows every image once, and `eval` solves. The loss in the log is
    that of the fit of the epochs before.
    """

    reads_prompt = reads_token_map = False
    per_target = ("weights", "constant", "scores", "is_known")
    features: torch.Tensor  # (M, D) of the images of training, as the tower gave them
    scores: torch.Tensor  # (T, M)
    is_known: torch.Tensor  # (T, M)
    weights: torch.Tensor  # (T, M)
    count: torch.Tensor  # number of them in use, ()
    mean: torch.Tensor  # (D,) of their features
    deviation: torch.Tensor  # (D,)

    def __init__(
        self, image_encoder: ImageTower, num_targets: int, *, kernel: Literal["linear", "gaussian"] = "linear",
        penalty: float = 0.03, most_images: int = 1000,
    ) -> None:  # fmt: skip
        """Makes room for the images of training.

        Args:
            kernel: of each part of the features.
            penalty: added to the diagonal of the kernel, which is about 1 there; above 0.
            most_images: M, how many images it can learn from, over all epochs; DataError where there are more.
        """
        super().__init__()
        if not penalty > 0 or most_images < 2:
            problem = f"penalty {penalty:g}, most_images {most_images} cannot be used"
            raise ConfigError(f"model: {problem}. Give a penalty above 0 and at least 2 images.")
        if dist.world_size() > 1:
            raise ConfigError("model.name: 'kernel_ridge' learns in one process. Start it without torchrun.")
        image_encoder.freeze()
        self.image_encoder, self.kernel, self.penalty = image_encoder, kernel, penalty
        shape = (num_targets, most_images)
        self.constant = nn.Parameter(torch.zeros(num_targets))  # the trainer wants something to train; `eval` sets it
        self.register_buffer("features", torch.zeros(most_images, image_encoder.embed_dim))
        for name in ("scores", "weights"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("is_known", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(image_encoder.embed_dim))
        self.register_buffer("deviation", torch.ones(image_encoder.embed_dim))

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32; the prompts are taken and not looked at."""
        return self._scores(self.image_encoder(images)[1])

    def observe(self, images: torch.Tensor, targets: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Keeps images (B, 3, S, S) with their MOS (B, T), those that are `known`, and returns scores (B, T)."""
        with torch.no_grad():
            features = self.image_encoder(images)[1].float()
        first, last = int(self.count), int(self.count) + len(features)
        if last > self.features.shape[0]:
            problem = f"{self.features.shape[0]} is less than the images seen in all epochs"
            raise DataError(f"model.most_images: {problem}. Set it to run.max_epochs times the images to train on.")
        self.features[first:last] = features
        self.scores[:, first:last] = targets.T
        self.is_known[:, first:last] = True if known is None else known.T
        self.count.fill_(last)
        return self._scores(features)

    def train(self, mode: bool = True) -> "KernelRidge":
        """Solves for the weights when training ends."""
        if self.training and not mode and self.count > 0:
            self._solve()
        return super().train(mode)

    @torch.no_grad()
    def _solve(self) -> None:
        number = int(self.count)
        seen = self.features[:number].double()
        self.mean.copy_(seen.mean(dim=0))
        self.deviation.copy_(seen.std(dim=0, correction=0) + 1e-6)  # a channel that never changes stays near 0
        standardised = self._standardised(seen)
        kernel = self._kernel(standardised, standardised)
        self.weights.zero_()
        for target, known in enumerate(self.is_known[:, :number]):
            rows = known.nonzero()[:, 0]
            if len(rows):
                scores = self.scores[target, rows].double()
                matrix = kernel[rows][:, rows] + self.penalty * torch.eye(len(rows), device=rows.device)
                solved = torch.linalg.solve(matrix, torch.stack([scores, torch.ones_like(scores)], dim=1))
                constant = solved[:, 0].sum() / solved[:, 1].sum()
                self.constant[target] = constant
                self.weights[target, rows] = (solved[:, 0] - constant * solved[:, 1]).float()

    def _scores(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            # rows not in use have a weight of 0
            kernel = self._kernel(self._standardised(features.float()), self._standardised(self.features))
            return kernel @ self.weights.T + self.constant

    def _standardised(self, features: torch.Tensor) -> torch.Tensor:
        """Returns features (B, D) with mean 0 and deviation 1 over the images of training."""
        return ((features - self.mean) / self.deviation).clamp(-LARGEST, LARGEST)

    def _kernel(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Returns how alike images are, (A, B), by their standardised features (A, D) and (B, D)."""
        parts = self.image_encoder.parts
        total = torch.zeros(len(a), len(b), dtype=a.dtype, device=a.device)
        for x, y in zip(a.split(parts, dim=1), b.split(parts, dim=1), strict=True):
            products = x @ y.T / x.shape[1]
            if self.kernel == "gaussian":
                squares = [part.square().mean(dim=1) for part in (x, y)]
                products = (products - (squares[0][:, None] + squares[1]) / 2).exp()
            total = total + products
        return total / len(parts)
