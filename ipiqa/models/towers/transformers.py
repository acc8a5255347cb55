"""What transformer towers have in common, whoever wrote them: how deep a parameter lies, and changes of low rank."""

import copy
import re
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ipiqa.errors import ConfigError

BLOCK = re.compile(r"(?:^|\.)(?:(?:res)?blocks?|layers?)\.(\d+)\.")  # of open_clip, timm and transformers
EMBEDDING = re.compile(r"conv1|(?<!qa_)embed|cls_token|reg_token|ln_pre|norm_pre")  # a [QA] token is new: no low layer


def depth(name: str, num_layers: int) -> int:
    """Returns how many layers lie before a parameter: 0 for embeddings, `num_layers` behind the last block."""
    if block := BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if EMBEDDING.search(name) else num_layers


def count_layers(tower: nn.Module) -> int:
    """Returns the depth of everything behind the last block: their number, and one for the embeddings."""
    blocks = (BLOCK.search(name) for name, _ in tower.named_parameters())
    return 1 + max((int(block[1]) + 1 for block in blocks if block), default=0)


class LowRank(nn.Module):
    """A matrix that is kept, and a change of low rank that trains (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, matrix: torch.Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = matrix.shape
        self.down = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))  # training begins at the matrix itself
        self.scale = alpha / rank

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        """Returns the matrix (rows, columns) with its change."""
        return matrix + self.scale * (self.up @ self.down)


def adapted(tower: Any, rank: int | None, alpha: float, where: str) -> Any:
    """Returns a frozen tower, but for changes of low rank in the attention and MLP layers of its blocks, which train.

    A rank of None changes nothing. ConfigError, for the section `where`, where the tower is not frozen, has no such
    layers or not of this size.
    """
    if rank is None:
        return tower
    blocks: list[nn.Module] = [module for name, module in tower.named_modules() if BLOCK.search(f"{name}.")]
    # the projections to query, key and value are a parameter of the attention, and no layer
    kinds = {"weight": nn.Linear, "in_proj_weight": nn.MultiheadAttention}
    matrices = [(module, name) for module in blocks for name, kind in kinds.items() if isinstance(module, kind)]
    freeze, most = tower.section()["freeze"], min((min(getattr(*matrix).shape) for matrix in matrices), default=0)
    problems = {
        f"{rank} needs a transformer, and this tower has no blocks of attention. Set it to null.": not matrices,
        f"{rank} with freeze: {freeze}. Set freeze: all; what is not in a change of low rank is kept.": freeze != "all",
        f"{rank} with lora_alpha {alpha} is out of range. Give 1 to {most}, and an alpha above 0.": (
            not 1 <= rank <= most or alpha <= 0
        ),
    }
    for problem in filter(problems.get, problems):
        raise ConfigError(f"{where}.lora_rank: {problem}")
    for module, name in matrices:
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank, alpha))
    tower._section |= {"freeze": "all", "lora_rank": rank, "lora_alpha": alpha}
    tower.frozen = False  # its features change
    return tower.train()


def merged(model: nn.Module) -> nn.Module:
    """Writes changes of low rank into the weights, for good, and returns the model: the same numbers in less time."""
    for module in model.modules():
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def merged_tensors(tower: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors of a tower as if it had been trained whole; it stays as it is."""
    return merged(copy.deepcopy(tower)).state_dict()
