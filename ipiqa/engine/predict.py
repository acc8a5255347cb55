"""Scores of many images, on one process or several."""

import contextlib
from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import nn

from ipiqa import dist
from ipiqa.engine.log import progress_bar
from ipiqa.engine.prompt_cache import PromptCache
from ipiqa.engine.stop import Interrupted, StopSignals

Batch = dict[str, torch.Tensor]


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the precision context of `amp`: "none", "bf16" or "fp16"."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], torch.Tensor], *,
    device: torch.device, amp: str = "none", prompts: PromptCache | None = None, description: str = "",
    stop: StopSignals | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns (rows (N,), predictions (N, T) float32), sorted by row, the same on every process.

    Each process goes through its own share of the rows; no row is padded, repeated or dropped.

    Args:
        model: in any mode; evaluated in evaluation mode and left in the mode it was in.
        batches: dicts with "rows" (B,) and whatever `forward` reads.
        forward: (model, batch) -> predictions (B, T).
        prompts: features kept from batch to batch; None keeps them for this call alone.
        stop: asked between batches, where there is nothing to save.

    Raises:
        Interrupted: a signal came to any of the processes.
    """
    dist.broadcast_buffers(model)
    prompts = prompts or PromptCache.of(model)
    was_training = model.training
    model.eval()
    rows, predictions = [], []
    with progress_bar(description, len(batches) if isinstance(batches, Sized) else None) as bar:
        for batch in batches:
            if stop is not None and stop.signal_number is not None:
                break
            with autocast(device, amp):
                if prompts is not None and "tokens" in batch:
                    batch = batch | {"tokens": prompts(batch["tokens"])}
                output = forward(model, batch)
            rows.append(batch["rows"].numpy())
            predictions.append(output.float().cpu().numpy())
            bar.update()
    model.train(was_training)
    shares = dist.gather((rows, predictions, stop and stop.signal_number))
    signals = [share[2] for share in shares if share[2] is not None]
    if signals:
        raise Interrupted(f"in {description}", signals[0])
    all_rows, all_predictions = (np.concatenate([part for share in shares for part in share[i]]) for i in (0, 1))
    order = np.argsort(all_rows, kind="stable")
    return all_rows[order], all_predictions[order]
