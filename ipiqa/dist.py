"""Several processes: the torchrun environment, and the few collective operations the framework needs."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Returns the number of this process among all processes, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns the number of this process on its machine, 0 when it is alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Returns the number of processes, 1 when torchrun did not start this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns whether this process writes the files and the log."""
    return rank() == 0


def is_restart() -> bool:
    """Returns whether torchrun has started this job again after a process of it had failed (`--max-restarts`)."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def process_group(device: torch.device, timeout_minutes: float = 30) -> Iterator[None]:
    """Joins the processes torchrun started (nccl on GPU, gloo on CPU) for the duration of the block.

    Inside another such block nothing happens: several runs of one process stay joined from the first to the last.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    # torchrun's own store outlives the processes: without a name for each life, the second one would find the
    # addresses of the first.
    store = dist.PrefixStore(f"ipiqa/{_restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank, on every process."""
    if world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def from_main(value: Any) -> Any:
    """Returns the value rank 0 holds, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_process(flag: bool, device: torch.device) -> bool:
    """Returns whether the flag is set on at least one process."""
    if world_size() == 1:
        return flag
    total = torch.tensor(int(flag), device=device)
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return bool(total.item())


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Gives every process the buffers of rank 0, so that BatchNorm evaluates with the same statistics everywhere."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()
