"""What transformer towers have in common, whoever wrote them: how deep a parameter lies."""

import re

from torch import nn

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
